/*
 * Checks a checkpoint file, goes on from what is in it, and saves until the power is cut.
 *
 *   writer FILE
 *
 * Compiled with EARLY it says "saved" before it knows.
 *
 * Says on its output, a line each: what it found ("newest STEP", "newest none"), on what it
 * writes ("storage" and statistics), and every step that was acknowledged as durable ("saved
 * STEP"). The bytes of a step follow from its number. Whatever else happens is "failed" and why.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <pccheck.h>

#define CAPACITY (512u << 10)
#define IN_FLIGHT 2
#ifndef EARLY
#define EARLY 0
#endif

static _Noreturn void fail(const char *what, const pcc_error *error) {
    printf("failed %s: %s\n", what, error->message);
    exit(1);
}

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

/* The payload of a step: how many bytes, and which. */
static uint64_t fill(uint64_t step, uint64_t *words) {
    uint64_t byte_count = 8 + mix(step) % (CAPACITY - 8);
    for (uint64_t index = 0; index <= byte_count / 8; index++)
        words[index] = mix(step << 32 ^ index);
    return byte_count;
}

static int64_t check_newest(const char *path, uint64_t *expected) {
    static uint64_t found[CAPACITY / 8 + 1];
    pcc_error error = {0};
    pcc_reader_options options = {.struct_size = sizeof options};
    pcc_reader *reader;
    if (pcc_reader_open(path, &options, &reader, &error)) fail("open to read", &error);
    pcc_checkpoint_info infos[8];
    size_t count;
    if (pcc_reader_list(reader, infos, 8, &count, &error)) fail("list", &error);
    int64_t newest = -1;
    for (size_t index = 0; index < count && newest < 0; index++) {
        pcc_checkpoint_info *info = &infos[index];
        if (pcc_reader_select(reader, info->sequence, NULL, &error)) fail("select", &error);
        pcc_destination all = {.byte_count = info->payload_byte_count, .data = found};
        if (info->payload_byte_count > sizeof found) fail("size", &error);
        pcc_status status = pcc_reader_load(reader, &all, 1, &error);
        if (status == PCC_CORRUPT && !info->is_anchored) continue;
        if (status) fail("load", &error);
        if (info->payload_byte_count != fill(info->step, expected)
            || memcmp(found, expected, info->payload_byte_count)) {
            printf("failed step %lu holds other bytes than were saved\n", info->step);
            exit(1);
        }
        newest = (int64_t)info->step;
    }
    pcc_reader_close(reader);
    return newest;
}

static void say_storage(pcc_writer *writer) {
    char *json;
    pcc_error error = {0};
    if (pcc_writer_stats_json(writer, &json, &error)) fail("statistics", &error);
    for (char *at = json; *at; at++)
        if (*at == '\n') *at = ' ';
    printf("storage %.400s\n", json);
    pcc_free(json);
}

static void save_for_ever(pcc_writer *writer, uint64_t step) {
    static uint64_t words[IN_FLIGHT][CAPACITY / 8 + 1];
    pcc_ticket *tickets[IN_FLIGHT] = {0};
    pcc_error error = {0};
    for (;; step++) {
        pcc_ticket **ticket = &tickets[step % IN_FLIGHT];
        if (*ticket) {
            pcc_status status = pcc_ticket_wait(*ticket, -1, &error);
            if (status && status != PCC_SUPERSEDED) fail("save", &error);
            if (!EARLY) printf("saved %lu\n", step - IN_FLIGHT);
            pcc_ticket_free(*ticket);
        }
        uint64_t *payload = words[step % IN_FLIGHT];
        pcc_region region = {.data = payload, .byte_count = fill(step, payload)};
        if (pcc_writer_save_opaque(writer, step, &region, 1, NULL, ticket, &error))
            fail("save", &error);
        if (EARLY) printf("saved %lu\n", step);
    }
}

int main(int argc, char **argv) {
    static uint64_t expected[CAPACITY / 8 + 1];
    if (argc != 2) return 2;
    const char *path = argv[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    pcc_error error = {0};
    int64_t newest = -1;
    if (access(path, F_OK)) {
        pcc_create_options options = {
            .struct_size = sizeof options, .in_flight = IN_FLIGHT, .chunk_byte_count = 64 << 10,
            .capacity_byte_count = CAPACITY, .prealloc = PCC_PREALLOC_ZERO};
        if (pcc_create(path, &options, &error)) fail("create", &error);
    } else {
        newest = check_newest(path, expected);
    }
    if (newest < 0) printf("newest none\n");
    else printf("newest %ld\n", newest);
    pcc_writer_options options = {.struct_size = sizeof options, .backend = PCC_BACKEND_PMEM};
    pcc_writer *writer;
    if (pcc_writer_open(path, &options, &writer, &error)) fail("open to write", &error);
    say_storage(writer);
    save_for_ever(writer, (uint64_t)(newest + 1));
}
