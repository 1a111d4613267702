/*
 * A C program that uses nothing but pccheck.h and libpccheck.so.
 *
 *   cabi DIRECTORY            runs all cases, prints one line each, exits 1 on the first failure
 *   cabi --crash FILE         (used by the first form) saves with three in flight, then dies
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pccheck.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ELEMENTS = 300000 };

static pcc_error error;
static int case_count;

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s:%d: %s is false; last message: %s\n", __FILE__, __LINE__,     \
                    #condition, error.message);                                                \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

#define OK(call) CHECK((call) == PCC_OK)

static void passed(const char *what)
{
    case_count++;
    printf("ok %d - %s\n", case_count, what);
}

static void fill(float *values, uint64_t step)
{
    for (uint64_t i = 0; i < ELEMENTS; i++)
        values[i] = (float)(step * 1000 + i % 997);
}

static pcc_status save(pcc_writer *writer, uint64_t step, const float *values, pcc_ticket **ticket)
{
    const uint64_t shape[2] = {ELEMENTS / 3, 3};
    const uint8_t flag = 1;
    pcc_tensor tensors[2] = {
        {.name = "flag", .dtype = "BOOL", .data = &flag, .byte_count = 1, .is_early = 1},
        {.name = "weight", .dtype = "F32", .shape = shape, .rank = 2, .data = values,
         .byte_count = ELEMENTS * sizeof(float)},
    };
    pcc_metadata metadata = {"made_by", "cabi.c"};
    pcc_save_options options = {.struct_size = sizeof options, .user_metadata = "from C"};
    pcc_status status =
        pcc_writer_save(writer, step, tensors, 2, &metadata, 1, &options, ticket, &error);
    /* `flag` lives on this stack, so its copy must be done before it goes. */
    if (status == PCC_OK) {
        OK(pcc_ticket_wait_early(*ticket, -1, &error));
        OK(pcc_ticket_wait_staged(*ticket, -1, &error));
    }
    return status;
}

static void create(const char *path, uint32_t in_flight)
{
    pcc_create_options options = {
        .struct_size = sizeof options,
        .in_flight = in_flight,
        .retain = 2,
        .chunk_byte_count = 65536,
        .capacity_byte_count = 2 << 20,
        .prealloc = PCC_PREALLOC_FALLOCATE,
        .fingerprint = "cabi",
    };
    OK(pcc_create(path, &options, &error));
    CHECK(pcc_create(path, &options, &error) == PCC_EXISTS);
}

/* Three durable, then three in flight, then a death that no handler sees. */
static int crash(const char *path)
{
    pcc_writer *writer;
    OK(pcc_writer_open(path, NULL, &writer, &error));
    float *values = malloc(ELEMENTS * sizeof *values);
    pcc_ticket *tickets[6];
    for (uint64_t step = 1; step <= 3; step++) {
        fill(values, step);
        OK(save(writer, step, values, &tickets[step - 1]));
        OK(pcc_ticket_wait(tickets[step - 1], 30000, &error));
    }
    for (uint64_t step = 4; step <= 6; step++) {
        fill(values, step);
        OK(save(writer, step, values, &tickets[step - 1]));
    }
    kill(getpid(), SIGKILL);
    return 1;
}

/* The selected checkpoint in a file of its own. */
static void expect_copy(pcc_reader *reader, const pcc_checkpoint_info *info)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/pccheck-cabi-copy-%d.pcc", (int)getpid());
    OK(pcc_reader_copy(reader, path, NULL, &error));
    CHECK(pcc_reader_verified_byte_count(reader) == info->payload_byte_count);
    CHECK(pcc_reader_copy(reader, path, NULL, &error) == PCC_EXISTS);
    pcc_copy_options payload = {.struct_size = sizeof payload, .form = PCC_COPY_PAYLOAD,
                                .replace_existing = 1};
    pcc_reader *copy;
    pcc_checkpoint_info found;
    OK(pcc_reader_open(path, NULL, &copy, &error));
    OK(pcc_reader_select_newest(copy, NULL, &found, &error));
    CHECK(found.step == info->step && found.sequence == info->sequence);
    CHECK(memcmp(found.logical_digest, info->logical_digest, 16) == 0);
    OK(pcc_reader_verify(copy, &error));
    pcc_reader_cancel(copy);
    CHECK(pcc_reader_copy(copy, path, &payload, &error) == PCC_CLOSED);
    pcc_reader_close(copy);
    OK(pcc_reader_copy(reader, path, &payload, &error));
    struct stat facts;
    CHECK(stat(path, &facts) == 0 && (uint64_t)facts.st_size == info->payload_byte_count);
    payload.form = 2;
    CHECK(pcc_reader_copy(reader, path, &payload, &error) == PCC_INVALID_ARGUMENT);
    OK(pcc_sweep(path, &error));
    CHECK(unlink(path) == 0);
    /* More than the first slot, and less than the whole file: an error, and no SIGXFSZ. */
    struct rlimit unlimited, limited;
    CHECK(getrlimit(RLIMIT_FSIZE, &unlimited) == 0);
    limited = unlimited;
    limited.rlim_cur = info->payload_byte_count * 3 / 2;
    CHECK(setrlimit(RLIMIT_FSIZE, &limited) == 0);
    CHECK(pcc_reader_copy(reader, path, NULL, &error) == PCC_RESOURCE_LIMIT);
    CHECK(setrlimit(RLIMIT_FSIZE, &unlimited) == 0);
    CHECK(access(path, F_OK) != 0);
}

static void expect_step(pcc_reader *reader, const pcc_checkpoint_info *info)
{
    pcc_checkpoint_info selected;
    OK(pcc_reader_select(reader, info->sequence, &selected, &error));
    CHECK(selected.step == info->step);
    char *json;
    uint64_t data_offset;
    OK(pcc_reader_manifest_json(reader, &json, &data_offset, &error));
    CHECK(strstr(json, "\"weight\"") && strstr(json, "\"made_by\""));
    CHECK(data_offset % 4096 == 0);
    pcc_free(json);
    float *expected = malloc(ELEMENTS * sizeof *expected);
    float *found = malloc(ELEMENTS * sizeof *found);
    fill(expected, info->step);
    /* The widest element comes first, so "weight" begins the data. */
    pcc_destination whole = {
        .payload_offset = data_offset, .byte_count = ELEMENTS * sizeof *found, .data = found};
    OK(pcc_reader_load(reader, &whole, 1, &error));
    CHECK(memcmp(expected, found, ELEMENTS * sizeof *found) == 0);
    OK(pcc_reader_verify(reader, &error));
    CHECK(pcc_reader_verified_byte_count(reader) == info->payload_byte_count);
    expect_copy(reader, info);
    free(expected);
    free(found);
}

/* From the newest to the next older one, which is what a program does that finds damage itself. */
static void expect_search(pcc_reader *reader, const pcc_checkpoint_info *newest,
                          const pcc_checkpoint_info *older)
{
    pcc_checkpoint_info found;
    OK(pcc_reader_select_newest(reader, NULL, &found, &error));
    CHECK(found.sequence == newest->sequence);
    pcc_error reason = {.code = PCC_CORRUPT, .slot = -1, .byte_offset = -1, .message = "odd"};
    OK(pcc_reader_select_next(reader, &reason, &found, &error));
    CHECK(found.sequence == older->sequence);
    char *json;
    OK(pcc_reader_rejections_json(reader, &json, &error));
    CHECK(strstr(json, "\"message\":\"odd\""));
    pcc_free(json);
    pcc_load_options options = {.struct_size = sizeof options, .has_step = 1};
    options.step = older->step;
    OK(pcc_reader_select_newest(reader, &options, &found, &error));
    CHECK(found.sequence == older->sequence);
    options.step = newest->step + 1000;
    CHECK(pcc_reader_select_newest(reader, &options, &found, &error) == PCC_NO_CHECKPOINT);
    options.has_step = 0;
    options.sequence_maximum = older->sequence;
    OK(pcc_reader_select_newest(reader, &options, &found, &error));
    CHECK(found.sequence == older->sequence);
    reason.code = PCC_CLOSED;
    CHECK(pcc_reader_select_next(reader, &reason, &found, &error) == PCC_CLOSED);
    CHECK(pcc_reader_select_next(reader, NULL, &found, &error) == PCC_INVALID_ARGUMENT);
}

static void crash_and_recover(const char *program, const char *path)
{
    create(path, 3);
    pid_t child = fork();
    if (child == 0) {
        execl(program, program, "--crash", path, (char *)NULL);
        _exit(127);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    passed("died with three checkpoints in flight");

    pcc_reader *reader;
    pcc_checkpoint_info infos[8];
    size_t count;
    OK(pcc_reader_open(path, NULL, &reader, &error));
    OK(pcc_reader_list(reader, infos, 8, &count, &error));
    CHECK(count >= 1 && infos[0].step >= 3);
    expect_step(reader, &infos[0]);
    char *json;
    OK(pcc_reader_report_json(reader, &json, &error));
    CHECK(strstr(json, "\"slots\""));
    pcc_free(json);
    uint64_t newest = infos[0].step, sequence = infos[0].sequence;
    pcc_reader_close(reader);
    passed("what was durable reads back after the crash");

    pcc_writer *writer, *second;
    OK(pcc_writer_open(path, NULL, &writer, &error));
    CHECK(pcc_writer_open(path, NULL, &second, &error) == PCC_LOCKED);
    passed("a second writer is refused");
    pcc_checkpoint_info recovered;
    uint32_t is_verified = 7;
    OK(pcc_writer_recovered(writer, &recovered, &is_verified, &error));
    CHECK(recovered.sequence == sequence && recovered.step == newest && is_verified == 1);
    CHECK(recovered.is_anchored == 1);
    OK(pcc_writer_close(writer, &error));
    pcc_writer_options trusting = {.struct_size = sizeof trusting, .trust_anchor = 1};
    OK(pcc_writer_open(path, &trusting, &writer, &error));
    OK(pcc_writer_recovered(writer, &recovered, &is_verified, &error));
    CHECK(recovered.sequence == sequence && is_verified == 0);
    passed("opening says what it goes on from, and whether it read that");
    float *values = malloc(ELEMENTS * sizeof *values);
    pcc_ticket *ticket;
    fill(values, newest + 1);
    OK(save(writer, newest + 1, values, &ticket));
    CHECK(pcc_ticket_sequence(ticket) > sequence);
    OK(pcc_ticket_wait(ticket, 30000, &error));
    CHECK(pcc_ticket_state(ticket) == PCC_TICKET_DURABLE);
    CHECK(pcc_ticket_durable_nanoseconds(ticket) > 0);
    pcc_ticket_free(ticket);
    CHECK(save(writer, newest, values, &ticket) == PCC_STEP_BACKWARDS);
    CHECK(strlen(error.message) > 20 && error.code == PCC_STEP_BACKWARDS);
    OK(pcc_writer_rewind(writer, newest, &error));
    fill(values, newest);
    OK(save(writer, newest, values, &ticket));
    pcc_ticket_free(ticket);
    OK(pcc_writer_stats_json(writer, &json, &error));
    CHECK(strstr(json, "\"saved_count\":2"));
    pcc_free(json);
    OK(pcc_writer_close(writer, &error));
    passed("reopened, saved, went back a step, closed");

    OK(pcc_reader_open(path, NULL, &reader, &error));
    OK(pcc_reader_list(reader, infos, 8, &count, &error));
    CHECK(infos[0].step == newest && infos[1].step == newest + 1 && infos[1].is_anchored);
    expect_step(reader, &infos[0]);
    expect_step(reader, &infos[1]);
    expect_search(reader, &infos[0], &infos[1]);
    writer = NULL;
    OK(pcc_writer_dispose(&writer, &error));
    pcc_reader_close(reader);
    free(values);
    passed("newest is the highest sequence, not the highest step; the retained one reads back");
}

static void refusals(const char *directory)
{
    char path[4096];
    pcc_writer *writer;
    snprintf(path, sizeof path, "%s/missing.pcc", directory);
    CHECK(pcc_writer_open(path, NULL, &writer, &error) == PCC_NOT_FOUND);
    CHECK(error.os_errno == ENOENT && strstr(error.message, "missing.pcc"));
    CHECK(pcc_writer_open(NULL, NULL, &writer, NULL) == PCC_INVALID_ARGUMENT);
    CHECK(pcc_writer_open(directory, NULL, &writer, &error) != PCC_OK);
    passed("missing file, NULL path and a directory");

    snprintf(path, sizeof path, "%s/refusals.pcc", directory);
    create(path, 1);
    pcc_writer_options options = {.struct_size = sizeof options, .fingerprint = "another"};
    CHECK(pcc_writer_open(path, &options, &writer, &error) == PCC_FINGERPRINT_MISMATCH);
    options = (pcc_writer_options){.struct_size = sizeof options, .rank = 1, .world_size = 2};
    CHECK(pcc_writer_open(path, &options, &writer, &error) == PCC_RANK_MISMATCH);
    struct {
        pcc_writer_options known;
        uint64_t from_the_future;
    } newer = {{.struct_size = sizeof newer}, 1};
    CHECK(pcc_writer_open(path, &newer.known, &writer, &error) == PCC_UNSUPPORTED);
    newer.from_the_future = 0;
    OK(pcc_writer_open(path, &newer.known, &writer, &error));
    passed("foreign fingerprint, foreign rank, and option structs of another version");

    void *pool;
    uint64_t pool_byte_count;
    OK(pcc_writer_pool(writer, &pool, &pool_byte_count, &error));
    CHECK((uintptr_t)pool % 4096 == 0 && pool_byte_count >= 3 * 65536);
    CHECK(((volatile char *)pool)[pool_byte_count - 1] == 0);
    CHECK(pcc_writer_pool(writer, NULL, &pool_byte_count, &error) == PCC_INVALID_ARGUMENT);
    CHECK(pcc_writer_pool(NULL, &pool, &pool_byte_count, &error) == PCC_INVALID_ARGUMENT);
    char other_path[4096];
    pcc_writer *other;
    snprintf(other_path, sizeof other_path, "%s/pool.pcc", directory);
    create(other_path, 1);
    options = (pcc_writer_options){.struct_size = sizeof options, .pool_byte_count = 1ull << 50};
    CHECK(pcc_writer_open(other_path, &options, &other, &error) == PCC_OUT_OF_MEMORY);
    CHECK(strstr(error.message, "1125899906842624 bytes, but"));
    CHECK(pcc_writer_recovered(writer, NULL, NULL, &error) == PCC_NO_CHECKPOINT);
    passed("the pool's region; a pool beyond the machine's memory is refused");

    pcc_ticket *ticket;
    char *large = calloc(1, 3 << 20);
    pcc_region region = {.data = large, .byte_count = 3 << 20};
    CHECK(pcc_writer_save_opaque(writer, 1, &region, 1, NULL, &ticket, &error) == PCC_TOO_LARGE);
    pcc_tensor tensor = {.name = "t", .dtype = "F99", .data = large, .byte_count = 4};
    CHECK(pcc_writer_save(writer, 1, &tensor, 1, NULL, 0, NULL, &ticket, &error) ==
          PCC_INVALID_ARGUMENT);
    tensor.dtype = "F32";
    tensor.byte_count = 5;
    CHECK(pcc_writer_save(writer, 1, &tensor, 1, NULL, 0, NULL, &ticket, &error) ==
          PCC_INVALID_ARGUMENT);
    /* Sizes that no memory has, and sums of them that 64 bits do not. */
    const uint64_t sizes[] = {1ull << 62, (1ull << 63) - 1, 1ull << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        pcc_region vast[3];
        for (size_t j = 0; j < 3; j++)
            vast[j] = (pcc_region){.data = large, .byte_count = sizes[i]};
        for (size_t count = 1; count <= 3; count++)
            CHECK(pcc_writer_save_opaque(writer, 1, vast, count, NULL, &ticket, &error) ==
                  PCC_TOO_LARGE);
        uint64_t payload_byte_count;
        tensor.byte_count = sizes[i];
        CHECK(pcc_payload_byte_count(&tensor, 1, NULL, 0, &payload_byte_count, &error) ==
              PCC_TOO_LARGE);
    }
    pcc_region vast[1024];
    for (size_t j = 0; j < 1024; j++)
        vast[j] = (pcc_region){.data = large, .byte_count = 1ull << 50};
    CHECK(pcc_writer_save_opaque(writer, 1, vast, 1024, NULL, &ticket, &error) == PCC_TOO_LARGE);
    region.byte_count = 100;
    OK(pcc_writer_save_opaque(writer, 1, &region, 1, NULL, &ticket, &error));
    pcc_status status = pcc_ticket_wait(ticket, -1, &error);
    CHECK(status == PCC_OK);
    pcc_ticket_free(ticket);
    free(large);
    OK(pcc_writer_close(writer, &error));
    passed("too large, unknown dtype, size that contradicts the shape; opaque bytes");
}

/* A message that is longer than the struct's room. */
/* A save in parts: it does not wait where it must not, and is told what is in the way. */
static void save_in_parts(const char *directory)
{
    char path[512];
    snprintf(path, sizeof path, "%s/parts.pcc", directory);
    create(path, 1);
    pcc_writer *writer = NULL;
    OK(pcc_writer_open(path, NULL, &writer, &error));
    float *values = malloc(ELEMENTS * sizeof(float));
    fill(values, 1);
    const uint64_t shape[1] = {ELEMENTS};
    pcc_tensor tensor = {.name = "weight", .dtype = "F32", .shape = shape, .rank = 1,
                         .data = values, .byte_count = ELEMENTS * sizeof(float)};
    pcc_save_options options = {.struct_size = sizeof options, .needs_approval = 1};
    pcc_save *first = NULL, *second = NULL;
    OK(pcc_writer_prepare(writer, 1, &tensor, 1, NULL, 0, &options, &first, &error));
    OK(pcc_writer_prepare(writer, 2, &tensor, 1, NULL, 0, NULL, &second, &error));
    pcc_ticket *ticket = NULL, *next = NULL;
    OK(pcc_save_begin(first, 0, &ticket, &error));
    /* Not approved: the slot stays taken. */
    CHECK(pcc_save_begin(second, 0, &next, &error) == PCC_BUSY && next == NULL);
    CHECK(pcc_save_wait(second, 0, 20, &error) == PCC_TIMEOUT);
    CHECK(strstr(error.message, "1 of 1 checkpoints are in flight") != NULL);
    OK(pcc_ticket_wait_staged(ticket, -1, &error));
    OK(pcc_writer_approve(writer, ticket, &error));
    OK(pcc_save_wait(second, 0, -1, &error));
    OK(pcc_save_begin(second, 0, &next, &error));
    OK(pcc_ticket_wait(next, -1, &error));
    pcc_save_dispose(&first);
    pcc_save_dispose(&second);
    pcc_save_dispose(&second);
    CHECK(first == NULL && second == NULL);
    CHECK(pcc_save_begin(NULL, 0, &next, &error) == PCC_INVALID_ARGUMENT);
    pcc_ticket_free(ticket);
    pcc_ticket_free(next);
    OK(pcc_writer_close(writer, &error));
    free(values);
    passed("a save in parts waits only where it is asked to");
}

static void messages(const char *directory)
{
    char path[4096], folder[256];
    memset(folder, 'm', 240);
    folder[240] = 0;
    snprintf(path, sizeof path, "%s/\033[2J%s/%s/%s/%s/%s", directory, folder, folder, folder,
             folder, folder);
    pcc_create_options options = {.struct_size = sizeof options, .capacity_byte_count = 65536};
    CHECK(pcc_create(path, &options, &error) == PCC_NOT_FOUND);
    CHECK(strlen(error.message) <= 999 && strstr(error.message, "\u2026") != NULL);
    char *whole = pcc_error_message(&error);
    CHECK(strlen(whole) > 1200 && strstr(whole, "the directory does not exist"));
    CHECK(!strchr(whole, 033) && strstr(whole, "\\u{1b}[2J"));
    pcc_free(whole);
    pcc_error other;
    CHECK(pcc_create("none/run.pcc", &options, &other) == PCC_NOT_FOUND);
    /* The thread has another message by now: what the struct holds is all there is. */
    whole = pcc_error_message(&error);
    CHECK(strcmp(whole, error.message) == 0);
    pcc_free(whole);
    whole = pcc_error_message(&other);
    CHECK(strcmp(whole, other.message) == 0);
    pcc_free(whole);
    CHECK(pcc_error_message(NULL) == NULL);
    passed("long messages are complete, and steer no terminal");
}

/* Exits with 0 when all that the parent made is refused, and ending it does nothing. */
static void use_in_child(pcc_writer *writer, pcc_ticket *ticket, pcc_reader *reader)
{
    alarm(20);
    pcc_region region = {.data = "x", .byte_count = 1};
    pcc_ticket *other = NULL;
    size_t count;
    char *json;
    CHECK(pcc_writer_save_opaque(writer, 9, &region, 1, NULL, &other, &error) == PCC_FORKED);
    CHECK(!other && strstr(error.message, "belongs to process"));
    CHECK(pcc_ticket_wait(ticket, -1, &error) == PCC_FORKED);
    CHECK(pcc_ticket_wait_staged(ticket, -1, &error) == PCC_FORKED);
    CHECK(pcc_writer_rewind(writer, 1, &error) == PCC_FORKED);
    CHECK(pcc_writer_stats_json(writer, &json, &error) == PCC_FORKED);
    CHECK(pcc_reader_list(reader, NULL, 0, &count, &error) == PCC_FORKED);
    CHECK(pcc_reader_verify(reader, &error) == PCC_FORKED);
    pcc_ticket_free(ticket);
    pcc_reader_close(reader);
    CHECK(pcc_writer_close(writer, &error) == PCC_FORKED);
    pcc_writer_abandon(writer);
    _exit(0);
}

static void fork_beside_everything(const char *directory)
{
    char path[4096], link[4096], name[64];
    snprintf(path, sizeof path, "%s/fork.pcc", directory);
    create(path, 2);
    pcc_writer *writer;
    pcc_ticket *ticket;
    pcc_reader *reader;
    pcc_checkpoint_info found;
    float *values = malloc(ELEMENTS * sizeof *values);
    fill(values, 1);
    OK(pcc_writer_open(path, NULL, &writer, &error));
    OK(save(writer, 1, values, &ticket));
    OK(pcc_ticket_wait(ticket, -1, &error));
    OK(pcc_reader_open(path, NULL, &reader, &error));
    OK(pcc_reader_select_newest(reader, NULL, &found, &error));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        for (int fd = 3; fd < 64; fd++) {
            snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
            ssize_t length = readlink(name, link, sizeof link - 1);
            link[length > 0 ? length : 0] = 0;
            CHECK(!strstr(link, "fork.pcc"));
        }
        use_in_child(writer, ticket, reader);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    OK(pcc_reader_verify(reader, &error));
    pcc_reader_dispose(&reader);
    CHECK(!reader);
    pcc_reader_dispose(&reader);
    pcc_reader_dispose(NULL);
    pcc_ticket_free(ticket);
    OK(save(writer, 2, values, &ticket));
    OK(pcc_ticket_wait(ticket, -1, &error));
    pcc_ticket_free(ticket);
    OK(pcc_writer_close(writer, &error));
    free(values);
    passed("a forked child holds nothing, is refused everything, and ends nothing");
}

/* The file of `rank` of a group of two, which saved up to `last_step` in its first attempt. */
static void write_rank(const char *path, uint32_t rank, uint64_t last_step)
{
    pcc_create_options create_options = {
        .struct_size = sizeof create_options, .in_flight = 1, .retain = 2,
        .chunk_byte_count = 65536, .capacity_byte_count = 1 << 20, .rank = rank, .world_size = 2,
        .run_uuid = {0x77, 1},
    };
    OK(pcc_create(path, &create_options, &error));
    pcc_writer_options options = {
        .struct_size = sizeof options, .rank = rank, .world_size = 2, .accepts_group = 1};
    pcc_writer *writer;
    OK(pcc_writer_open(path, &options, &writer, &error));
    pcc_attempt attempt = {.struct_size = sizeof attempt, .attempt = 4};
    OK(pcc_writer_begin_attempt(writer, &attempt, &error));
    for (uint64_t step = 10; step <= last_step; step += 10) {
        const uint64_t bytes[4] = {rank, step};
        pcc_region region = {.data = bytes, .byte_count = sizeof bytes};
        pcc_ticket *ticket;
        OK(pcc_writer_save_opaque(writer, step, &region, 1, NULL, &ticket, &error));
        OK(pcc_ticket_wait(ticket, 30000, &error));
        if (step == 10)
            OK(pcc_writer_decide(writer, pcc_ticket_sequence(ticket), 1, &error));
        pcc_ticket_free(ticket);
    }
    OK(pcc_writer_close(writer, &error));
}

/* A file's entry in the reports, appended to `text`. */
static void append_report(char *text, size_t size, const char *path)
{
    pcc_reader *reader;
    char *json;
    OK(pcc_reader_open(path, NULL, &reader, &error));
    OK(pcc_reader_report_json(reader, &json, &error));
    size_t used = strlen(text);
    CHECK((size_t)snprintf(text + used, size - used, "%s{\"path\":\"%s\",\"report\":%s}",
                           used > 1 ? "," : "", path, json) < size - used);
    pcc_free(json);
    pcc_reader_close(reader);
}

/* What two ranks decide together, of which one saved further than the other. */
static void decide_together(const char *directory)
{
    char paths[2][512], reports[20480] = "[";
    for (uint32_t rank = 0; rank < 2; rank++) {
        snprintf(paths[rank], sizeof paths[rank], "%s/rank-%05u-of-00002.pcc", directory, rank);
        write_rank(paths[rank], rank, rank == 0 ? 20 : 10);
        append_report(reports, sizeof reports - 480, paths[rank]);
    }
    strcat(reports, "]");
    char *decision;
    OK(pcc_group_decide(reports, &decision, &error));
    CHECK(strstr(decision, "{\"run\":\"77010000-0000-0000-0000-000000000000\",\"outcome\":"
                           "\"resume\",\"lost\":null,\"next_attempt\":5,\"watermark\":"
                           "{\"attempt\":4,\"step\":10},\"checkpoints\":[{\"attempt\":4,"
                           "\"step\":20,\"world_size\":2,\"is_complete\":false,") == decision);
    CHECK(strstr(decision, "\"missing\":[{\"rank\":1,\"last_rank\":1,"
                           "\"reason\":\"not in the file\"}]},"
                           "{\"attempt\":4,\"step\":10,\"world_size\":2,\"is_complete\":true,"
                           "\"files\":[{\"rank\":0,"));
    CHECK(strstr(decision, "\"worlds\":[{\"world_size\":2,\"file_count\":2,\"missing\":[]}],"
                           "\"problems\":[]}"));
    pcc_free(decision);
    passed("two ranks decide on the newest checkpoint that both have");

    /* Both had it durable, so it is lost when it is damaged; a void one never was. */
    strcpy(reports + strlen(reports) - 1,
           ",{\"rejected\":{\"attempt\":4,\"step\":10,\"cause\":\"damaged\"}}]");
    OK(pcc_group_decide(reports, &decision, &error));
    CHECK(strstr(decision, "\"outcome\":\"refuse\",\"lost\":{\"attempt\":4,\"step\":10}"));
    CHECK(strstr(decision, "\"missing\":[{\"rank\":0,\"last_rank\":1,"
                           "\"reason\":\"it was rejected when its parts were read\"}]"));
    pcc_free(decision);
    passed("a checkpoint that was rejected is not decided on again");

    snprintf(reports, sizeof reports, "[{\"path\":\"%s\",\"error\":\"gone\"}]", paths[0]);
    OK(pcc_group_decide(reports, &decision, &error));
    CHECK(strstr(decision, "\"outcome\":\"refuse\"") && strstr(decision, "\"unusable\""));
    pcc_free(decision);
    OK(pcc_group_decide("[ ]", &decision, &error));
    CHECK(strstr(decision, "{\"run\":null,\"outcome\":\"begin\",\"lost\":null,"
                           "\"next_attempt\":1,") == decision);
    pcc_free(decision);
    passed("a file that cannot be used is no new run, and no file is one");

    const char *const wrong[] = {
        "", "{}", "[1]", "[{}]", "[{\"path\":\"a\"}]", "[{\"path\":\"a\",\"report\":{}}]",
        "[] x", "[{\"path\":\"a\",\"error\":\"b\"},]", "[{\"path\":\"a\",\"x\":[[[",
        "[{\"rejected\":{\"attempt\":4,\"step\":10}}]", "[{\"rejected\":{\"cause\":\"void\"}}]",
        "[{\"rejected\":{\"attempt\":4,\"step\":10,\"cause\":\"tired\"}}]",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK(pcc_group_decide(wrong[i], &decision, &error) == PCC_INVALID_ARGUMENT);
        CHECK(decision == NULL && strstr(error.message, "reports_json: "));
    }
    CHECK(pcc_group_decide(NULL, &decision, &error) == PCC_INVALID_ARGUMENT);
    CHECK(pcc_group_decide("[]", NULL, &error) == PCC_INVALID_ARGUMENT);
    passed("reports that are none are refused");
}

/* How often to save, by what was measured. */
static void choose_an_interval(void)
{
    pcc_interval_options options = {.struct_size = sizeof options, .step_seconds = 0.1,
                                    .cost_seconds = 0.07, .durable_seconds = 0.35};
    pcc_interval found;
    OK(pcc_choose_interval(&options, &found, &error));
    CHECK(found.steps == 35 && found.bound == PCC_BOUND_BUDGET && found.goodput == 0);
    CHECK(found.overhead > 0.0199999 && found.overhead < 0.0200001);
    CHECK(found.lost_seconds > 2.0999 && found.lost_seconds < 2.1001);
    /* The defaults, as given. */
    pcc_interval again;
    options.in_flight = 2;
    options.budget = 0.02;
    options.min_steps = 1;
    options.max_steps = 1000000000;
    OK(pcc_choose_interval(&options, &again, &error));
    CHECK(memcmp(&found, &again, sizeof found) == 0);
    options.max_steps = 7;
    OK(pcc_choose_interval(&options, &found, &error));
    CHECK(found.steps == 7 && found.bound == PCC_BOUND_LIMIT && found.overhead > 0.0999);
    options.max_steps = 0;
    options.budget = 0.07;
    OK(pcc_choose_interval(&options, &found, &error));
    CHECK(found.steps == 10 && found.bound == PCC_BOUND_BUDGET);
    options.budget = 0;
    for (uint32_t in_flight = 1; in_flight <= 4; in_flight *= 2) {
        options.in_flight = in_flight;
        options.cost_seconds = 0;
        options.durable_seconds = 40;
        OK(pcc_choose_interval(&options, &found, &error));
        CHECK(found.steps == 400 / in_flight && found.bound == PCC_BOUND_THROUGHPUT);
    }
    options.durable_seconds = 0.1;
    OK(pcc_choose_interval(&options, &found, &error));
    CHECK(found.steps == 1 && found.bound == PCC_BOUND_STEP);
    /* Young: the square root of 2 * 1 s * 200000 s is 632 s. */
    options.cost_seconds = 1;
    options.durable_seconds = 3;
    options.mtbf_seconds = 2e5;
    options.restart_seconds = 100;
    OK(pcc_choose_interval(&options, &found, &error));
    CHECK(found.steps > 6260 && found.steps < 6390 && found.bound == PCC_BOUND_FAILURES);
    CHECK(found.goodput > 0.99 && found.goodput < 0.999);
    passed("the interval of a job that measured its saves");

    struct {
        pcc_interval_options known;
        uint64_t from_the_future;
    } newer = {.known = options, .from_the_future = 1};
    newer.known.struct_size = sizeof newer;
    CHECK(pcc_choose_interval(&newer.known, &found, &error) == PCC_UNSUPPORTED);
    /* A caller whose struct ends behind the budget. */
    options.struct_size = offsetof(pcc_interval_options, mtbf_seconds);
    options.min_steps = UINT64_MAX;
    OK(pcc_choose_interval(&options, &found, &error));
    CHECK(found.steps == 500 && found.bound == PCC_BOUND_BUDGET);
    options.struct_size = sizeof options;
    CHECK(pcc_choose_interval(&options, &found, &error) == PCC_INVALID_ARGUMENT);
    CHECK(strstr(error.message, "min_steps is 18446744073709551615, expected 1 to 1000000000"));
    options.min_steps = 0;
    double *const numbers[] = {&options.step_seconds, &options.cost_seconds,
                               &options.durable_seconds, &options.budget, &options.mtbf_seconds,
                               &options.restart_seconds};
    const char *const names[] = {"a step", "the cost of a save", "the time until durable",
                                 "the budget", "the mean time between failures", "a restart"};
    const double wrong[] = {NAN, INFINITY, -INFINITY, -1};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const double right = *numbers[i];
        for (size_t j = 0; j < sizeof wrong / sizeof *wrong; j++) {
            *numbers[i] = wrong[j];
            CHECK(pcc_choose_interval(&options, &found, &error) == PCC_INVALID_ARGUMENT);
            CHECK(strstr(error.message, names[i]) == error.message &&
                  strstr(error.message, ", expected "));
        }
        *numbers[i] = right;
    }
    options.in_flight = 65;
    CHECK(pcc_choose_interval(&options, &found, &error) == PCC_INVALID_ARGUMENT);
    CHECK(pcc_choose_interval(NULL, &found, &error) == PCC_INVALID_ARGUMENT);
    CHECK(strstr(error.message, "a step is 0.0, expected "));
    CHECK(pcc_choose_interval(&options, NULL, &error) == PCC_INVALID_ARGUMENT);
    passed("numbers that make no interval are refused");
}

int main(int count, char **arguments)
{
    if (count == 3 && strcmp(arguments[1], "--crash") == 0)
        return crash(arguments[2]);
    if (count != 2) {
        fprintf(stderr, "usage: %s DIRECTORY\n", arguments[0]);
        return 2;
    }
    CHECK(pcc_abi_version() == PCC_ABI_VERSION);
    CHECK(strcmp(pcc_status_name(PCC_LOCKED), "PCC_LOCKED") == 0);
    char path[4096];
    snprintf(path, sizeof path, "%s/crash.pcc", arguments[1]);
    crash_and_recover(arguments[0], path);
    refusals(arguments[1]);
    save_in_parts(arguments[1]);
    messages(arguments[1]);
    decide_together(arguments[1]);
    choose_an_interval();
    fork_beside_everything(arguments[1]);
    printf("%d passed, 0 failed\n", case_count);
    return 0;
}
