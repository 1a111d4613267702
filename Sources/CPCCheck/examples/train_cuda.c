/*
 * A training loop on an NVIDIA GPU that saves every step and resumes where it was killed.
 *
 *     cc train_cuda.c $(pkg-config --cflags --libs pccheck) -lcuda -o train_cuda
 *     ./train_cuda run.pcc 100
 *
 * The engine copies the weights itself, chunk by chunk through its pool. Nothing here waits for
 * that copy: the stream does, before the next step changes the weights.
 */
#include <cuda.h>
#include <inttypes.h>
#include <pccheck.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { BYTE_COUNT = 8 << 20, TIMEOUT_MS = 60000 };

static pcc_error error;

static void must(pcc_status status)
{
    if (status == PCC_OK)
        return;
    fprintf(stderr, "error: %s\n", error.message);
    exit(1);
}

static void must_cuda(CUresult result, const char *call)
{
    const char *text = NULL;
    if (result == 0)
        return;
    cuGetErrorString(result, &text);
    fprintf(stderr, "error: %s: %s\n", call, text ? text : "unknown");
    exit(1);
}
#define CUDA(call) must_cuda(call, #call)

/* Where training continues; the weights are filled on the device, behind the stream's work. */
static uint64_t resume(const char *path, CUdeviceptr weights, pcc_place place)
{
    pcc_reader *reader;
    pcc_checkpoint_info info;
    must(pcc_reader_open(path, NULL, &reader, &error));
    pcc_status status = pcc_reader_select_newest(reader, NULL, &info, &error);
    if (status == PCC_NO_CHECKPOINT) {
        pcc_reader_close(reader);
        return 0;
    }
    must(status);
    /* One tensor: its data begins where the header ends. */
    char *manifest;
    pcc_destination destination = {
        .byte_count = BYTE_COUNT, .data = (void *)(uintptr_t)weights, .place = place};
    must(pcc_reader_manifest_json(reader, &manifest, &destination.payload_offset, &error));
    pcc_free(manifest);
    must(pcc_reader_load(reader, &destination, 1, &error));
    pcc_reader_close(reader);
    return info.step + 1;
}

/* Makes the file of the first run. */
static void create(const char *path, const pcc_tensor *tensor)
{
    pcc_create_options options = {.struct_size = sizeof options, .in_flight = 2, .retain = 1};
    must(pcc_payload_byte_count(tensor, 1, NULL, 0, &options.capacity_byte_count, &error));
    pcc_status status = pcc_create(path, &options, &error);
    if (status != PCC_EXISTS)
        must(status);
}

int main(int count, char **arguments)
{
    if (count != 3) {
        fprintf(stderr, "usage: train_cuda FILE STEPS\n");
        return 2;
    }
    const char *path = arguments[1];
    const uint64_t step_count = strtoull(arguments[2], NULL, 10);

    CUdevice device;
    CUcontext context;
    CUstream stream;
    CUdeviceptr weights;
    CUDA(cuInit(0));
    CUDA(cuDeviceGet(&device, 0));
    CUDA(cuDevicePrimaryCtxRetain(&context, device));
    CUDA(cuCtxSetCurrent(context));
    CUDA(cuStreamCreate(&stream, 0));
    CUDA(cuMemAlloc(&weights, BYTE_COUNT));

    const pcc_place place = {
        .device = PCC_DEVICE_CUDA, .ordinal = 0, .stream = (uint64_t)(uintptr_t)stream};
    const uint64_t shape[] = {BYTE_COUNT};
    const pcc_tensor tensor = {
        .name = "weights", .dtype = "U8", .shape = shape, .rank = 1,
        .data = (const void *)(uintptr_t)weights, .byte_count = BYTE_COUNT, .place = place};

    create(path, &tensor);
    const uint64_t start = resume(path, weights, place);
    printf("starts at step %" PRIu64 "\n", start);
    const pcc_writer_options options = {.struct_size = sizeof options};
    pcc_writer *writer;
    must(pcc_writer_open(path, &options, &writer, &error));
    pcc_ticket *ticket = NULL;
    for (uint64_t step = start; step < step_count; step++) {
        if (ticket) {
            /* The next step waits on the device until the last save has read the weights. */
            must(pcc_ticket_hold_stream(ticket, &place, 0, TIMEOUT_MS, &error));
            pcc_ticket_free(ticket);
        }
        /* A step of training, which the device runs when it comes to it. */
        CUDA(cuMemsetD8Async(weights, (unsigned char)step, BYTE_COUNT, stream));
        must(pcc_writer_save(writer, step, &tensor, 1, NULL, 0, NULL, &ticket, &error));
    }
    if (ticket) {
        must(pcc_ticket_wait(ticket, TIMEOUT_MS, &error));
        printf("step %" PRIu64 " is durable\n", step_count - 1);
        pcc_ticket_free(ticket);
    }
    must(pcc_writer_close(writer, &error));
    CUDA(cuStreamSynchronize(stream));
    CUDA(cuStreamDestroy(stream));
    CUDA(cuMemFree(weights));
    CUDA(cuDevicePrimaryCtxRelease(device));
    return 0;
}
