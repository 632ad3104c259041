/* SPDX-License-Identifier: Apache-2.0 */
/* Behaviour from its words, the way into every entry point, and the only symbol that the service looks up. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fake_inside.h"

#define WORDS_BYTES 1024
#define DEFAULT_MEMORY_BYTES ((uint64_t)1 << 30)
#define DEFAULT_DRIVER 13000

#define RESULT_HANG (-1)
enum { FOUND = 0, SYMBOL_MISSING = 1, VERSION_MISSING = 2 }; /* CUdriverProcAddressQueryResult */

struct fake_state fake = {.lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER};

/* A forked child begins with what the device's thread of its parent leaves whole, and without that thread, for which
 * `moved` would wait. */
static void before_fork(void)
{
    pthread_mutex_lock(&fake.lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&fake.lock);
}

static void begin_child(void)
{
    fake.moved = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    pthread_mutex_unlock(&fake.lock);
}

__attribute__((constructor)) static void watch_forks(void)
{
    if (pthread_atfork(before_fork, after_fork, begin_child) != 0) {
        fake_break("pthread_atfork");
    }
}
_Thread_local struct cuda_context *fake_current;

static pthread_once_t read_environment = PTHREAD_ONCE_INIT;

struct entry {
    const char *name;
    int abi;
    void (*function)(void);
};

#define CUDA_CALL(need, name, abi, parameters) {#name, abi, (void (*)(void))fake_##name},
static const struct entry entries[CALLS_NR] = {
#include "cuda_api.def"
#define CUDA_CALL(need, name, abi, parameters) {#name, abi, (void (*)(void))fake_##name},
#include "fake_cuda_more.def"
};

void fake_break(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "fake driver: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    abort();
}

uint64_t fake_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- words ---- */

static enum fake_call find_call(const char *name, size_t length)
{
    for (int i = 0; i < CALLS_NR; i++) {
        if (strlen(entries[i].name) == length && strncmp(entries[i].name, name, length) == 0) {
            return (enum fake_call)i;
        }
    }
    fake_break("there is no entry point %.*s", (int)length, name);
}

static int *next_attribute(struct fake_behaviour *behaviour)
{
    if (behaviour->attributes_nr == FAKE_RULES_MAX) {
        fake_break("more than %d attributes", FAKE_RULES_MAX);
    }
    return behaviour->attributes[behaviour->attributes_nr++];
}

/* CALL:N:RESULT */
static void add_rule(struct fake_behaviour *behaviour, const char *text)
{
    size_t name = strcspn(text, ":");
    const char *nth = text + name + 1;
    const char *result = text[name] ? strchr(nth, ':') : NULL;
    if (!result || behaviour->rules_nr == FAKE_RULES_MAX) {
        fake_break("\"fail=%s\" is not CALL:N:RESULT, or the %dth of its kind", text, FAKE_RULES_MAX + 1);
    }
    behaviour->rules[behaviour->rules_nr++] = (struct fake_rule){
        .call = find_call(text, name),
        .nth = nth[0] == '*' ? 0 : (unsigned)strtoul(nth, NULL, 10),
        .result = strcmp(result + 1, "hang") == 0 ? RESULT_HANG : (int)strtol(result + 1, NULL, 10),
    };
}

static void open_counts(const char *path)
{
    size_t bytes = CALLS_NR * sizeof(*fake.counts);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
        fake_break("cannot open the counts %s", path);
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) {
        fake_break("cannot map the counts %s", path);
    }
    fake.counts = memory;
    for (int i = 0; i < CALLS_NR; i++) {
        snprintf(fake.counts[i].name, sizeof(fake.counts[i].name), "%s", entries[i].name);
    }
}

/* What stands behind `key` in `word`; NULL: it does not begin so. */
static const char *value_of(const char *word, const char *key)
{
    return strncmp(word, key, strlen(key)) == 0 ? word + strlen(key) : NULL;
}

static void see_gpus(struct fake_behaviour *behaviour, const char *digits)
{
    behaviour->devices = (int)strlen(digits);
    for (int i = 0; i < behaviour->devices && i < FAKE_DEVICES_MAX; i++) {
        behaviour->gpus[i] = digits[i] - '0';
    }
}

static bool take_value(struct fake_behaviour *behaviour, const char *word)
{
    const char *value;
    if ((value = value_of(word, "fail="))) {
        add_rule(behaviour, value);
    } else if ((value = value_of(word, "missing="))) {
        behaviour->missing[find_call(value, strlen(value))] = true;
    } else if ((value = value_of(word, "delay_us="))) {
        behaviour->delay_us = (unsigned)strtoul(value, NULL, 10);
    } else if ((value = value_of(word, "uneven="))) {
        behaviour->uneven = strtoull(value, NULL, 10);
    } else if ((value = value_of(word, "devices="))) {
        behaviour->devices = (int)strtol(value, NULL, 10);
    } else if ((value = value_of(word, "visible="))) {
        see_gpus(behaviour, value);
    } else if ((value = value_of(word, "driver="))) {
        behaviour->driver = (int)strtol(value, NULL, 10);
    } else if ((value = value_of(word, "memory="))) {
        behaviour->memory_bytes = strtoull(value, NULL, 10);
    } else if ((value = value_of(word, "counts="))) {
        open_counts(value);
    } else if ((value = value_of(word, "attribute=")) && strchr(value, ':')) {
        int *attribute = next_attribute(behaviour);
        attribute[0] = (int)strtol(value, NULL, 10);
        attribute[1] = (int)strtol(strchr(value, ':') + 1, NULL, 10);
    } else {
        return false;
    }
    return true;
}

static void take_word(struct fake_behaviour *behaviour, const char *word)
{
    if (strcmp(word, "daemon") == 0) {
        behaviour->daemon = true;
    } else if (strcmp(word, "manual") == 0) {
        behaviour->manual = true;
    } else if (strcmp(word, "mig") == 0) {
        behaviour->mig = true;
    } else if (strcmp(word, "same_process") == 0) {
        behaviour->same_process = true;
    } else if (strcmp(word, "already_mapped") == 0) {
        behaviour->already_mapped = true;
    } else if (!take_value(behaviour, word)) {
        fake_break("\"%s\" is no behaviour", word);
    }
}

static void behave(const char *words)
{
    char copy[WORDS_BYTES];
    char *rest = NULL;
    if ((size_t)snprintf(copy, sizeof(copy), "%s", words) >= sizeof(copy)) {
        fake_break("the behaviour has more than %d bytes", WORDS_BYTES);
    }
    fake.behaviour =
        (struct fake_behaviour){.devices = 1, .driver = DEFAULT_DRIVER, .memory_bytes = DEFAULT_MEMORY_BYTES};
    for (int i = 0; i < FAKE_DEVICES_MAX; i++) {
        fake.behaviour.gpus[i] = i;
    }
    fake.ready = false;
    fake.sticky = CUDA_RESULT_OK;
    memset(fake.calls, 0, sizeof(fake.calls));
    for (char *word = strtok_r(copy, ";", &rest); word; word = strtok_r(NULL, ";", &rest)) {
        take_word(&fake.behaviour, word);
    }
    if (fake.behaviour.devices < 0 || fake.behaviour.devices > FAKE_DEVICES_MAX) {
        fake_break("devices: 0 to %d", FAKE_DEVICES_MAX);
    }
}

static void behave_as_environment(void)
{
    const char *words = getenv("MLACAT_FAKE_CUDA");
    behave(words ? words : "");
}

void fake_cuda_behave(const char *words)
{
    pthread_once(&read_environment, behave_as_environment);
    pthread_mutex_lock(&fake.lock);
    if (words) {
        behave(words);
    } else {
        behave_as_environment();
    }
    pthread_mutex_unlock(&fake.lock);
}

void fake_cuda_ready(void)
{
    pthread_mutex_lock(&fake.lock);
    fake.ready = true;
    pthread_mutex_unlock(&fake.lock);
}

uint64_t fake_cuda_calls(const char *name)
{
    enum fake_call call = find_call(name, strlen(name));
    pthread_mutex_lock(&fake.lock);
    uint64_t calls = fake.calls[call];
    pthread_mutex_unlock(&fake.lock);
    return calls;
}

/* ---- entering ---- */

/* Those after which a true context is good for nothing. */
bool fake_is_sticky(int result)
{
    return result == 700 || result == 702 || result == 710 || (result >= 714 && result <= 719);
}

/* Alone: others still get what they ask for. Again and again, because the thread sanitizer keeps a signal back until
 * the thread makes its next call: under it a daemon was once seen to sleep on here. */
static void hang(enum fake_call call)
{
    const struct timespec time = {.tv_nsec = 10000000};
    pthread_mutex_unlock(&fake.lock);
    fprintf(stderr, "fake driver: %s hangs\n", entries[call].name);
    for (;;) {
        nanosleep(&time, NULL);
    }
}

/* 0, or what a rule says of this call. */
static int fail_by_rule(enum fake_call call)
{
    for (unsigned i = 0; i < fake.behaviour.rules_nr; i++) {
        const struct fake_rule *rule = &fake.behaviour.rules[i];
        if (rule->call == call && (rule->nth == 0 || rule->nth == fake.calls[call])) {
            if (rule->result == RESULT_HANG) {
                hang(call);
            }
            if (fake_is_sticky(rule->result)) {
                fake.sticky = rule->result;
            }
            return rule->result;
        }
    }
    return CUDA_RESULT_OK;
}

static int enter(enum fake_call call, bool needs_context)
{
    pthread_once(&read_environment, behave_as_environment);
    pthread_mutex_lock(&fake.lock);
    fake.calls[call]++;
    if (fake.counts) {
        atomic_fetch_add(&fake.counts[call].calls, 1);
    }
    int result = fail_by_rule(call);
    if (result == CUDA_RESULT_OK && !fake.initialized && call != CALL_cuInit && call != CALL_cuGetErrorName &&
        call != CALL_cuDriverGetVersion) {
        result = RESULT_NOT_INITIALIZED;
    }
    if (result == CUDA_RESULT_OK && needs_context) {
        result = !fake_current || fake_current->retains == 0 ? RESULT_INVALID_CONTEXT : fake.sticky;
    }
    return result == CUDA_RESULT_OK ? CUDA_RESULT_OK : fake_leave(result);
}

int fake_enter(enum fake_call call)
{
    return enter(call, false);
}

int fake_enter_context(enum fake_call call)
{
    return enter(call, true);
}

int fake_leave(int result)
{
    pthread_mutex_unlock(&fake.lock);
    return result;
}

/* ---- the symbol ---- */

__attribute__((visibility("default"))) int cuGetProcAddress_v2(const char *name, void **address, int abi,
                                                               uint64_t flags, int *answer);

int cuGetProcAddress_v2(const char *name, void **address, int abi, uint64_t flags, int *answer)
{
    (void)flags;
    pthread_once(&read_environment, behave_as_environment);
    *address = NULL;
    *answer = SYMBOL_MISSING;
    for (int i = 0; i < CALLS_NR; i++) {
        if (strcmp(entries[i].name, name) == 0 && !fake.behaviour.missing[i]) {
            *answer = abi >= entries[i].abi && abi <= fake.behaviour.driver ? FOUND : VERSION_MISSING;
            if (*answer == FOUND) {
                memcpy(address, &entries[i].function, sizeof(*address));
                return CUDA_RESULT_OK;
            }
        }
    }
    return RESULT_NOT_FOUND;
}
