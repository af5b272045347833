/* Token ids to vectors with a bundle's ONNX model and onnxruntime's C API: one vector a line.
 *
 *   embed MODEL.onnx TOKENS.bin [KEY=VALUE …]
 *
 * KEY=VALUE are the session's configuration: settings.config of the variant in manifest.json.
 * TOKENS.bin is what tokens.py writes, in the byte order of the machine: for each text an int64 with the number n of its
 * tokens, and n int64 token ids. Texts go in one by one, so nothing is padded and the mask is all ones.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <onnxruntime_c_api.h>

enum { LONGEST = 1 << 20, MOST_INPUTS = 3 };

static const OrtApi *ort;

static void fail(const char *message) {
    fprintf(stderr, "error: %s\n", message);
    exit(1);
}

/* The same about a name. */
static void fail_with(const char *name, const char *message) {
    fprintf(stderr, "error: '%s' %s\n", name, message);
    exit(1);
}

static void check(OrtStatus *status) {
    if (status)
        fail(ort->GetErrorMessage(status));
}

static OrtSession *open_model(OrtEnv *env, const char *path, char **settings) {
    OrtSessionOptions *options;
    OrtSession *session;
    check(ort->CreateSessionOptions(&options));
    for (; *settings; settings++) {
        char *equals = strchr(*settings, '=');
        if (!equals)
            fail_with(*settings, "is no setting: write KEY=VALUE");
        *equals = '\0';
        check(ort->AddSessionConfigEntry(options, *settings, equals + 1));
    }
    check(ort->CreateSession(env, path, options, &session));
    ort->ReleaseSessionOptions(options);
    return session;
}

/* The vector of one text, printed. `zeros` and `ones` are as long as `ids`: types and mask. */
static void embed(OrtSession *session, OrtMemoryInfo *memory, int64_t *ids, int64_t *ones, int64_t *zeros, int64_t n) {
    OrtAllocator *allocator;
    OrtValue *values[MOST_INPUTS], *output = NULL;
    char *names[MOST_INPUTS], *output_name;
    const int64_t shape[2] = {1, n};
    size_t count, size;
    float *vector;
    OrtTensorTypeAndShapeInfo *info;

    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(ort->SessionGetInputCount(session, &count));
    if (count > MOST_INPUTS)
        fail("the model has more inputs than ids, mask and types");
    for (size_t i = 0; i < count; i++) {
        check(ort->SessionGetInputName(session, i, allocator, &names[i]));
        int64_t *data = strcmp(names[i], "input_ids") == 0        ? ids
                        : strcmp(names[i], "attention_mask") == 0 ? ones
                        : strcmp(names[i], "token_type_ids") == 0 ? zeros
                                                                  : NULL;
        if (!data)
            fail_with(names[i], "is an input of the model, and neither ids, mask nor types");
        check(ort->CreateTensorWithDataAsOrtValue(memory, data, n * sizeof *data, shape, 2,
                                                  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &values[i]));
    }
    check(ort->SessionGetOutputName(session, 0, allocator, &output_name));
    check(ort->Run(session, NULL, (const char *const *)names, (const OrtValue *const *)values, count,
                   (const char *const *)&output_name, 1, &output));
    check(ort->GetTensorTypeAndShape(output, &info));
    check(ort->GetTensorShapeElementCount(info, &size));
    check(ort->GetTensorMutableData(output, (void **)&vector));
    for (size_t i = 0; i < size; i++)
        printf(i ? " %.9g" : "%.9g", vector[i]);
    printf("\n");

    ort->ReleaseTensorTypeAndShapeInfo(info);
    ort->ReleaseValue(output);
    check(ort->AllocatorFree(allocator, output_name));
    for (size_t i = 0; i < count; i++) {
        ort->ReleaseValue(values[i]);
        check(ort->AllocatorFree(allocator, names[i]));
    }
}

int main(int count, char **arguments) {
    if (count < 3) {
        fprintf(stderr, "usage: embed MODEL.onnx TOKENS.bin [KEY=VALUE ...]\n");
        return 2;
    }
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort)
        fail("the onnxruntime library is older than the header");
    FILE *tokens = fopen(arguments[2], "rb");
    if (!tokens)
        fail_with(arguments[2], "cannot be read: give the file of tokens");

    OrtEnv *env;
    OrtMemoryInfo *memory;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "embed", &env));
    check(ort->DisableTelemetryEvents(env));
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    OrtSession *session = open_model(env, arguments[1], arguments + 3);

    int64_t n;
    while (fread(&n, sizeof n, 1, tokens) == 1) {
        if (n < 1 || n > LONGEST)
            fail("a text has no tokens, or too many");
        int64_t *ids = malloc(n * sizeof *ids), *ones = malloc(n * sizeof *ones), *zeros = calloc(n, sizeof *zeros);
        if (!ids || !ones || !zeros || fread(ids, sizeof *ids, n, tokens) != (size_t)n)
            fail("the tokens end in the middle of a text");
        for (int64_t i = 0; i < n; i++)
            ones[i] = 1;
        embed(session, memory, ids, ones, zeros, n);
        free(ids), free(ones), free(zeros);
    }
    fclose(tokens);
    ort->ReleaseSession(session);
    ort->ReleaseMemoryInfo(memory);
    ort->ReleaseEnv(env);
    return 0;
}
