/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_jit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "concat_mla_text.h"
#include "jit_cache.h"
#include "jit_compile.h"
#include "log.h"

#define KEY_FORMAT 1          /* counts up when an entry of the same text means something else */
#define PTX_ARCH "compute_75" /* CMakeLists.txt builds it */
/* NVRTC's own cache, which would start the CUDA driver, came with 12.9, and the option to leave it alone too. */
#define NVRTC_WITH_CACHE 12090

/* One jit_load. */
struct attempt {
    const struct jit_options *options;
    enum mlacat_status (*load)(void *owner, const struct jit_image *image, struct error *err);
    void *owner;
    struct jit_report *report;
    struct jit_cache cache;
    struct jit_compiler compiler;
    bool nvrtc; /* the compiler is there and knows an architecture that will do */
    char arch_option[sizeof("--gpu-architecture=") + JIT_ARCH_BYTES];
    struct jit_text text;
    struct jit_cache_key key;
    struct error cache_error; /* why the last image of each source was no good */
    struct error nvrtc_error;
    struct error build_error;
    struct error device_error; /* why no image can be loaded at all */
};

const char *jit_source_name(enum jit_source source)
{
    static const char *const names[] = {"cache", "nvrtc", "build"};
    return (size_t)source < sizeof(names) / sizeof(names[0]) ? names[source] : "unknown";
}

/* Machine code for this GPU, or, from an NVRTC that is older than the GPU, PTX for the nearest older one. */
static void choose_arch(struct attempt *attempt)
{
    const struct jit_compiler *compiler = &attempt->compiler;
    uint32_t wanted = (uint32_t)(attempt->options->major * 10 + attempt->options->minor);
    uint32_t nearest = 0;
    char *arch = attempt->report->arch;
    for (uint32_t i = 0; i < compiler->archs_nr; i++) {
        if (compiler->archs[i] <= wanted && compiler->archs[i] > nearest) {
            nearest = compiler->archs[i];
        }
    }
    if (attempt->nvrtc && nearest == 0) {
        error_set(&attempt->nvrtc_error, MLACAT_UNAVAILABLE, "NVRTC %u.%u knows no GPU as old as compute capability %u",
                  compiler->nvrtc_version / 1000, compiler->nvrtc_version % 1000 / 10, wanted);
        attempt->nvrtc = false;
    }
    if (attempt->nvrtc && nearest != wanted) {
        snprintf(arch, JIT_ARCH_BYTES, "compute_%u", nearest);
    } else {
        snprintf(arch, JIT_ARCH_BYTES, "sm_%u", wanted);
    }
}

static void write_text(struct attempt *attempt)
{
    struct jit_text *text = &attempt->text;
    snprintf(attempt->arch_option, sizeof(attempt->arch_option), "--gpu-architecture=%s", attempt->report->arch);
    *text = (struct jit_text){
        .source_name = "concat_mla.cu",
        .source = concat_mla_text_source,
        .header_name = "concat_mla_args.h",
        .header = concat_mla_text_header,
        .options = {attempt->arch_option, "--std=c++17", "--modify-stack-limit=false", "--no-cache"},
        .options_nr = 4,
    };
}

static void hash_string(struct sha256 *hash, const char *string)
{
    sha256_update(hash, string, strlen(string) + 1); /* with its NUL, so that no two lists run together alike */
}

static void write_key(struct attempt *attempt)
{
    const struct jit_text *text = &attempt->text;
    const uint32_t format = KEY_FORMAT;
    struct sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, &format, sizeof(format));
    hash_string(&hash, text->source_name);
    hash_string(&hash, text->source);
    hash_string(&hash, text->header_name);
    hash_string(&hash, text->header);
    for (uint32_t i = 0; i < text->options_nr; i++) {
        hash_string(&hash, text->options[i]);
    }
    sha256_final(&hash, attempt->key.text);
    attempt->key.arch = attempt->report->arch;
    attempt->key.nvrtc_version = attempt->nvrtc ? attempt->compiler.nvrtc_version : 0;
}

/* Does a failed load say something about the image, and not about the device? */
static bool blames_image(const struct error *err)
{
    return err->code != MLACAT_UNAVAILABLE && err->code != MLACAT_RESOURCE_EXHAUSTED && err->code != MLACAT_DATA_LOSS;
}

static bool try_image(struct attempt *attempt, const struct jit_image *image, struct error *err)
{
    if (attempt->device_error.code != MLACAT_OK) {
        return false;
    }
    memset(err, 0, sizeof(*err));
    if (attempt->load(attempt->owner, image, err) == MLACAT_OK) {
        attempt->report->source = image->source;
        return true;
    }
    log_warning("kernels_refused", "source=%s arch=%s status=%s reason=\"%s\"", jit_source_name(image->source),
                attempt->report->arch, status_name(err->code), err->message);
    if (!blames_image(err)) {
        attempt->device_error = *err;
    }
    return false;
}

static bool try_cache(struct attempt *attempt)
{
    struct jit_cache_image cached;
    if (!jit_cache_read(&attempt->cache, &attempt->key, &cached)) {
        error_set(&attempt->cache_error, MLACAT_NOT_FOUND, "no entry");
        return false;
    }
    struct jit_image image = {
        .bytes = cached.bytes, .bytes_nr = cached.bytes_nr, .ptx = cached.ptx, .source = JIT_FROM_CACHE};
    bool loaded = try_image(attempt, &image, &attempt->cache_error);
    free(cached.bytes);
    if (!loaded && attempt->device_error.code == MLACAT_OK) {
        struct jit_cache_key key = attempt->key;
        key.nvrtc_version = cached.nvrtc_version;
        jit_cache_remove(&attempt->cache, &key);
    }
    return loaded;
}

static bool try_nvrtc(struct attempt *attempt)
{
    struct jit_compiled compiled;
    struct jit_text text = attempt->text;
    if (!attempt->nvrtc || attempt->device_error.code != MLACAT_OK) {
        return false;
    }
    if (attempt->compiler.nvrtc_version < NVRTC_WITH_CACHE) {
        text.options_nr--; /* the last one: not known there, and not needed; the key has it all the same */
    }
    if (jit_compiler_run(&attempt->compiler, &text, &compiled, &attempt->nvrtc_error) != MLACAT_OK) {
        log_warning("kernels_not_built", "arch=%s status=%s reason=\"%s\"", attempt->report->arch,
                    status_name(attempt->nvrtc_error.code), attempt->nvrtc_error.message);
        return false;
    }
    struct jit_image image = {
        .bytes = compiled.bytes, .bytes_nr = compiled.bytes_nr, .ptx = compiled.ptx, .source = JIT_FROM_NVRTC};
    bool loaded = try_image(attempt, &image, &attempt->nvrtc_error);
    if (loaded) {
        struct jit_cache_image cached = {.bytes = compiled.bytes, .bytes_nr = compiled.bytes_nr, .ptx = compiled.ptx};
        jit_cache_write(&attempt->cache, &attempt->key, &cached);
    }
    free(compiled.bytes);
    return loaded;
}

static bool try_build(struct attempt *attempt)
{
    struct jit_image image = {.bytes = concat_mla_text_ptx,
                              .bytes_nr = strlen(concat_mla_text_ptx) + 1,
                              .ptx = true,
                              .source = JIT_FROM_BUILD};
    if (image.bytes_nr == 1) {
        error_set(&attempt->build_error, MLACAT_NOT_FOUND, "none: this binary was built without nvcc");
        return false;
    }
    snprintf(attempt->report->arch, sizeof(attempt->report->arch), PTX_ARCH);
    return try_image(attempt, &image, &attempt->build_error);
}

static enum mlacat_status finish(struct attempt *attempt, bool loaded, uint64_t start_ns, struct error *err)
{
    struct jit_report *report = attempt->report;
    snprintf(report->cache_folder, sizeof(report->cache_folder), "%s", attempt->cache.folder);
    snprintf(report->cache_reason, sizeof(report->cache_reason), "%s", attempt->cache.reason);
    snprintf(report->nvrtc_reason, sizeof(report->nvrtc_reason), "%s", attempt->nvrtc_error.message);
    report->nvrtc_version = attempt->compiler.nvrtc_version;
    report->duration_ns = clock_now_ns() - start_ns;
    if (attempt->device_error.code != MLACAT_OK) {
        *err = attempt->device_error;
        return err->code;
    }
    if (!loaded) {
        return error_set(err, MLACAT_FAILED_PRECONDITION,
                         "no kernels for compute capability %d.%d; cache: %.40s; NVRTC: %.70s; built-in PTX: %.70s",
                         attempt->options->major, attempt->options->minor, attempt->cache_error.message,
                         attempt->nvrtc_error.message, attempt->build_error.message);
    }
    if (report->source == JIT_FROM_BUILD) {
        log_warning("kernels_from_ptx",
                    "note=\"the driver translated the built-in PTX; with NVRTC the kernels are made "
                    "for this GPU\" nvrtc=\"%s\"",
                    report->nvrtc_reason);
    }
    log_debug("kernels", "source=%s arch=%s nvrtc=%u.%u duration_ms=%llu", jit_source_name(report->source),
              report->arch, report->nvrtc_version / 1000, report->nvrtc_version % 1000 / 10,
              (unsigned long long)report->duration_ns / 1000000);
    return MLACAT_OK;
}

enum mlacat_status jit_load(const struct jit_options *options,
                            enum mlacat_status (*load)(void *owner, const struct jit_image *image, struct error *err),
                            void *owner, struct jit_report *report, struct error *err)
{
    struct attempt attempt = {.options = options, .load = load, .owner = owner, .report = report};
    uint64_t start_ns = clock_now_ns();
    memset(report, 0, sizeof(*report));
    jit_cache_open(&attempt.cache, options->cache_folder);
    attempt.nvrtc =
        jit_compiler_start(&attempt.compiler, options->nvrtc, options->limit_ms ? options->limit_ms : JIT_LIMIT_MS,
                           &attempt.nvrtc_error) == MLACAT_OK;
    choose_arch(&attempt);
    write_text(&attempt);
    write_key(&attempt);
    bool loaded = try_cache(&attempt) || try_nvrtc(&attempt) || try_build(&attempt);
    enum mlacat_status status = finish(&attempt, loaded, start_ns, err);
    jit_compiler_stop(&attempt.compiler);
    jit_cache_close(&attempt.cache);
    return status;
}
