/* SPDX-License-Identifier: Apache-2.0 */
#include "models.h"

/* Width of the compressed Q in front of the latent in a row of the fused down-projection. */
#define Q_LORA 1536u

const struct model models[] = {
    {"DeepSeek-V3", 128, 128, 64, 128, 512}, {"DeepSeek-V3 TP8", 16, 128, 64, 128, 512},
    {"Kimi K2 TP8", 8, 128, 64, 128, 512},   {"Kimi K3 TP8", 12, 128, 64, 128, 512},
    {"GLM-5", 64, 192, 64, 256, 512},        {"Mistral Small 4", 32, 64, 64, 128, 256},
    {"MiniCPM3", 40, 64, 32, 64, 256},
};
const size_t models_nr = sizeof(models) / sizeof(models[0]);

struct shape models_shape(const struct model *model, enum mlacat_op op, enum mlacat_dtype dtype, bool strided,
                          uint64_t tokens)
{
    bool absorbed = op == MLACAT_OP_CONCAT_MLA_ABSORB_Q;

    return (struct shape){
        .op = op,
        .dtype = dtype,
        .dim0 = tokens,
        .dim1 = model->heads,
        .first = absorbed ? model->latent : model->nope,
        .second = model->rope,
        .strided = strided,
        .v = model->v,
        .lead = absorbed ? model->nope : Q_LORA + model->latent,
    };
}
