/*
 * pccheck.h: concurrent durable checkpoints in one slotted file.
 *
 * Two words have an exact meaning:
 *   staged   the state was copied out of the caller's memory, which may now be changed;
 *   durable  the state was flushed to the medium and anchored by a superblock: it survives a
 *            power cut.
 *
 * Every function that can fail returns a pcc_status and, when `error` is not NULL, fills it.
 * Handles may be used from any thread, and belong to the process that made them. In a forked child,
 * a call on one returns PCC_FORKED, and closing or freeing one does nothing: the child holds none
 * of the parent's files, locks and memory. A child opens its own files.
 * Strings are UTF-8 and NUL-terminated. Sizes are in bytes, times in nanoseconds unless named.
 * Option structs begin with their size: set it with sizeof, zero the rest, and fields that a
 * later version appends keep their default. A value of 0 always means "the default".
 */
#ifndef PCCHECK_H
#define PCCHECK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PCC_ABI_VERSION 1

#if defined(__GNUC__)
#define PCC_API __attribute__((visibility("default")))
#else
#define PCC_API
#endif

/* What went wrong. Values are stable. */
typedef int32_t pcc_status;
#define PCC_OK 0
#define PCC_INVALID_ARGUMENT 1     /* an argument is out of its documented range */
#define PCC_NOT_FOUND 2            /* no such file */
#define PCC_EXISTS 3               /* the file exists already */
#define PCC_LOCKED 4               /* another writer has the file open */
#define PCC_BUSY 5                 /* every slot is in flight or pinned by a reader (the message
                                     * names it), and the policy is to fail */
#define PCC_TOO_LARGE 6            /* the state is larger than a slot */
#define PCC_NO_CHECKPOINT 7        /* the file holds no checkpoint that fits the request */
#define PCC_CORRUPT 8              /* stored bytes do not match their digest */
#define PCC_NOT_A_CHECKPOINT_FILE 9 /* foreign, truncated, or text-mode damaged */
#define PCC_UNSUPPORTED 10         /* newer format, unknown incompatible feature, or a back end
                                     * that is not available here */
#define PCC_READ_ONLY 11           /* the file or its medium cannot be written */
#define PCC_NO_SPACE 12            /* the file system is full */
#define PCC_IO 13                  /* the operating system reported an I/O error */
#define PCC_FAIL_STOP 14           /* a superblock could not be committed; reopen the file */
#define PCC_CLOSED 15              /* the writer was closed */
#define PCC_STEP_BACKWARDS 16      /* the step is below the last one saved by this writer */
#define PCC_FINGERPRINT_MISMATCH 17 /* the file belongs to another model or topology */
#define PCC_RANK_MISMATCH 18       /* the file belongs to another rank or world size */
#define PCC_TIMEOUT 19             /* the deadline passed; the operation continues */
#define PCC_FORKED 20              /* the handle belongs to the parent process */
#define PCC_SLOTS_EXHAUSTED 21     /* too many slots were taken out of use after failed flushes */
#define PCC_OUT_OF_MEMORY 22       /* not enough memory for the staging pool */
#define PCC_SUPERSEDED 23          /* a newer checkpoint is durable; this one was released */
#define PCC_SKIPPED 24             /* nothing was saved: every slot was in flight (policy skip) */
#define PCC_REJECTED 25            /* the application rejected it: see pcc_writer_reject */
#define PCC_RESOURCE_LIMIT 26      /* a limit on this process or user (ulimit, cgroup): file size,
                                     * open files, threads; the message names it and its value */
#define PCC_ACCELERATOR 27         /* the runtime of a device (CUDA) reported an error */

typedef struct pcc_error {
    int32_t code;         /* a pcc_status */
    int32_t os_errno;     /* errno of the failing system call, or 0 */
    int32_t slot;         /* slot index, or -1 */
    int32_t reserved;
    int64_t byte_offset;  /* offset in the file, or -1 */
    char message[1000];   /* what was found, what was expected, where, what to do next; UTF-8 on
                             one line, without control or direction characters. A longer message
                             ends with " …": see pcc_error_message */
} pcc_error;

/* Returns the complete message of an error, however long it is; free it with pcc_free. Call this in
 * the thread that got the error, before another call of that thread fails; later it returns the
 * message in `error`. NULL for NULL, and when there is no memory. */
PCC_API char *pcc_error_message(const pcc_error *error);

/* Name of a status, such as "PCC_LOCKED"; never NULL. */
PCC_API const char *pcc_status_name(pcc_status status);
/* Version of the library: three numbers, with dots between them. */
PCC_API const char *pcc_version(void);
/* PCC_ABI_VERSION of the loaded library. */
PCC_API uint32_t pcc_abi_version(void);

/* ------------------------------------------------------------------ creating a file */

#define PCC_PREALLOC_DEFAULT 0
#define PCC_PREALLOC_FALLOCATE 1 /* reserve blocks; the first save into each slot writes them */
#define PCC_PREALLOC_ZERO 2      /* write zeros too; takes as long as writing the whole file */

typedef struct pcc_create_options {
    uint32_t struct_size;
    uint32_t in_flight;           /* checkpoints in flight at once, 1..64; default 2 */
    uint32_t retain;              /* durable checkpoints kept, 1..16; default 1 */
    uint32_t chunk_byte_count;    /* multiple of 65536; default 4 MiB */
    uint64_t capacity_byte_count; /* largest payload in bytes; required */
    uint32_t prealloc;            /* PCC_PREALLOC_*; default fallocate; persistent memory,
                                     and a file system without it, always get zeros */
    uint32_t rank;
    uint32_t world_size;          /* default 1 */
    uint32_t replace_existing;    /* 1: replace a file at this path */
    const char *fingerprint;      /* identity of model and topology, at most 254 bytes; or NULL */
    uint32_t allow_network;       /* 1: accept a network file system */
    uint32_t reserved;
    uint8_t run_uuid[16];         /* not zero: a file of a group, see "groups" below */
} pcc_create_options;

/* Creates a file under a temporary name, fsyncs it, and renames it into place. */
PCC_API pcc_status pcc_create(const char *path, const pcc_create_options *options,
                              pcc_error *error);

typedef struct pcc_resize_options {
    uint32_t struct_size;
    uint32_t in_flight;           /* 0: as it is, for these three */
    uint32_t retain;
    uint32_t allow_network;       /* 1: accept a network file system */
    uint64_t capacity_byte_count;
} pcc_resize_options;

/*
 * Changes the capacity or the slots of a file that no writer has open. It creates a new file in the
 * same folder, copies the checkpoints into it, verifies them there, and then renames it: an error
 * before the rename leaves the file unchanged. It keeps the newest intact checkpoint, or changes
 * nothing (PCC_TOO_LARGE), and as many older ones as are retained, fit and are intact.
 * PCC_UNSUPPORTED for a block device.
 */
PCC_API pcc_status pcc_resize(const char *path, const pcc_resize_options *options,
                              pcc_error *error);

/* ------------------------------------------------------------------ writing */

typedef struct pcc_writer pcc_writer;
typedef struct pcc_ticket pcc_ticket;

#define PCC_ON_BUSY_WAIT 0
#define PCC_ON_BUSY_SKIP 1
#define PCC_ON_BUSY_FAIL 2

#define PCC_BACKEND_AUTO 0     /* PMEM on a DAX file, else O_DIRECT if available, else buffered */
#define PCC_BACKEND_DIRECT 1   /* O_DIRECT or an error */
#define PCC_BACKEND_BUFFERED 2 /* page cache */
/* io_uring; without it the same as PCC_BACKEND_AUTO, which the statistics then report. */
#define PCC_BACKEND_RING 3
#define PCC_BACKEND_PMEM 4     /* persistent memory through libpmem2 or an error */

#define PCC_CODEC_NONE 0
#define PCC_CODEC_ZSTD 1        /* zstd per chunk */
#define PCC_CODEC_PLANES_ZSTD 2 /* byte planes by dtype width, then zstd */

typedef struct pcc_writer_options {
    uint32_t struct_size;
    uint32_t on_busy;               /* PCC_ON_BUSY_* */
    uint32_t busy_timeout_ms;       /* bound of PCC_ON_BUSY_WAIT; default none */
    uint32_t backend;               /* PCC_BACKEND_* */
    uint32_t snapshot_worker_count; /* threads that copy and digest state; default 1..4 */
    uint32_t writer_worker_count;   /* threads that compress and write; default 3 */
    uint64_t pool_byte_count;       /* staging memory; default min(capacity, 2 GiB), at least a
                                       chunk per writer worker; more than is available is
                                       PCC_OUT_OF_MEMORY, before any of it is touched */
    uint32_t codec;                 /* PCC_CODEC_*; default none */
    int32_t zstd_level;             /* default 1 */
    uint32_t rank;                  /* must match the file */
    uint32_t world_size;            /* must match the file; default 1 */
    const char *fingerprint;        /* must match the file when not NULL */
    uint32_t allow_network;         /* 1: accept a network file system */
    uint32_t trust_anchor;          /* 1: do not read the newest checkpoint when opening; if it is
                                       rotten, the older one stays until a save is durable */
    uint32_t deep_flush;            /* 1: on persistent memory, do not rely on power-fail saving */
    uint32_t accepts_group;         /* 1: a file of a group too, see "groups" below; without it,
                                       such a file is PCC_INVALID_ARGUMENT */
} pcc_writer_options;

/*
 * Opens an existing file for writing: takes the writer lock, flushes, and recovers. It keeps the
 * newest checkpoint of which every chunk verifies, and anchors it when a crash or damage left it
 * unanchored. It reads that checkpoint once, unless trust_anchor is set. PCC_CORRUPT when there are
 * checkpoints but none is intact; nothing is written then.
 */
PCC_API pcc_status pcc_writer_open(const char *path, const pcc_writer_options *options,
                                   pcc_writer **writer, pcc_error *error);

typedef struct pcc_checkpoint_info pcc_checkpoint_info;

/*
 * The checkpoint from which opening chose to continue. `is_verified` gets 1 when opening read all
 * of it; with trust_anchor it is mostly 0, and a load finds out. PCC_NO_CHECKPOINT when the file
 * had none. Either pointer may be NULL.
 */
PCC_API pcc_status pcc_writer_recovered(pcc_writer *writer, pcc_checkpoint_info *info,
                                        uint32_t *is_verified, pcc_error *error);

#define PCC_DEVICE_HOST 0 /* memory of this process */
#define PCC_DEVICE_CUDA 1

/*
 * Where memory is. For a device, `ordinal` is the number of the device among those that this
 * process sees, and `stream` the stream (for CUDA, a CUstream or cudaStream_t; 0 is the default
 * stream) whose work, as far as it is queued when the call is made, comes first: a save stores the
 * values that this work leaves, and a load waits for it before it fills the memory. The library of
 * the device's runtime is loaded when the first device is named.
 */
typedef struct pcc_place {
    uint32_t device;  /* PCC_DEVICE_* */
    int32_t ordinal;  /* 0 for the host, as the stream is */
    uint64_t stream;
} pcc_place;

/*
 * One tensor, dense and row-major. The memory must stay unchanged until the ticket is staged; that
 * of early tensors only until pcc_ticket_wait_early returns. Work that a stream of its device has
 * queued after pcc_ticket_hold_stream may change it, as the device holds that work back.
 */
typedef struct pcc_tensor {
    const char *name;
    const char *dtype;     /* safetensors name: "F32", "BF16", "I64", "BOOL", "F8_E4M3", … */
    const uint64_t *shape; /* `rank` extents; may be NULL for rank 0 */
    const void *data;      /* may be NULL when byte_count is 0 */
    uint64_t byte_count;   /* must equal the product of shape × element size */
    uint32_t rank;
    uint32_t is_early;     /* 1: copied before the tensors that are not */
    pcc_place place;       /* where `data` is; zeros for the host */
} pcc_tensor;

typedef struct pcc_metadata {
    const char *key;
    const char *value;
} pcc_metadata;

typedef struct pcc_region {
    const void *data;
    uint64_t byte_count;
    pcc_place place;
} pcc_region;

typedef struct pcc_save_options {
    uint32_t struct_size;
    uint32_t is_urgent;        /* 1: copied and written before everything else in flight; it gets
                                  the first slot that becomes free, and after 1 second one that
                                  only readers have, whose reads then end as PCC_BUSY */
    const char *user_metadata; /* at most 2048 bytes, kept in the slot header; or NULL */
    uint32_t needs_approval;   /* 1: written, but not committed before pcc_writer_approve */
    uint32_t reserved;         /* 0 */
} pcc_save_options;

/*
 * Begins a checkpoint whose payload is a safetensors image of `tensors`, with `metadata` as its
 * __metadata__. Returns at once unless every slot is in flight and the policy is to wait. Names
 * and metadata are copied before it returns; tensor memory is read until the ticket is staged.
 * A skipped save returns PCC_OK and a ticket in state PCC_TICKET_SKIPPED. Free the ticket.
 */
PCC_API pcc_status pcc_writer_save(pcc_writer *writer, uint64_t step, const pcc_tensor *tensors,
                                   size_t tensor_count, const pcc_metadata *metadata,
                                   size_t metadata_count, const pcc_save_options *options,
                                   pcc_ticket **ticket, pcc_error *error);

/* The same for bytes that only the application understands: the regions, one after another. */
PCC_API pcc_status pcc_writer_save_opaque(pcc_writer *writer, uint64_t step,
                                          const pcc_region *regions, size_t region_count,
                                          const pcc_save_options *options, pcc_ticket **ticket,
                                          pcc_error *error);

/*
 * pcc_writer_save in parts, for a caller that must not wait for a slot without a break, such as an
 * interpreter that handles signals. One thread at a time uses a pcc_save.
 *
 * pcc_writer_prepare describes the payload, once: names and metadata are copied, and
 * options->is_urgent is not read. pcc_save_begin begins the checkpoint, and never waits: while
 * there is no slot it returns PCC_BUSY, or a skipped ticket where the policy is to skip.
 * pcc_save_wait returns PCC_OK when pcc_save_begin is worth another call, and PCC_TIMEOUT, with
 * what is in the way, when the time is over. A save that is_urgent (1) waits whatever the policy;
 * once it has waited, it keeps its claim on the next slot and stays urgent, until it has begun.
 * pcc_save_dispose frees it and sets *save to NULL, also after it has begun.
 */
typedef struct pcc_save pcc_save;

PCC_API pcc_status pcc_writer_prepare(pcc_writer *writer, uint64_t step,
                                      const pcc_tensor *tensors, size_t tensor_count,
                                      const pcc_metadata *metadata, size_t metadata_count,
                                      const pcc_save_options *options, pcc_save **save,
                                      pcc_error *error);
PCC_API pcc_status pcc_save_begin(pcc_save *save, uint32_t is_urgent, pcc_ticket **ticket,
                                  pcc_error *error);
PCC_API pcc_status pcc_save_wait(pcc_save *save, uint32_t is_urgent, int64_t timeout_ms,
                                 pcc_error *error);
PCC_API void pcc_save_dispose(pcc_save **save);

/*
 * For an application that finds out only after a ticket is staged whether its memory changed during
 * the copy. A checkpoint that was saved with needs_approval is committed after pcc_writer_approve,
 * and ends as failed with PCC_REJECTED after pcc_writer_reject; pcc_writer_close rejects the
 * remaining ones. On another ticket, or one that has ended, both do nothing.
 */
PCC_API pcc_status pcc_writer_approve(pcc_writer *writer, pcc_ticket *ticket, pcc_error *error);
PCC_API pcc_status pcc_writer_reject(pcc_writer *writer, pcc_ticket *ticket, const char *reason,
                                     pcc_error *error);

/* Bytes of the payload of these tensors, to choose a capacity before creating a file. */
PCC_API pcc_status pcc_payload_byte_count(const pcc_tensor *tensors, size_t tensor_count,
                                          const pcc_metadata *metadata, size_t metadata_count,
                                          uint64_t *byte_count, pcc_error *error);

/* Allows training to go back to `step` on purpose: later saves may use any step from there. */
PCC_API pcc_status pcc_writer_rewind(pcc_writer *writer, uint64_t step, pcc_error *error);

/* Statistics as a JSON object, to be freed with pcc_free. While a save waits for readers, its
 * "pinned_slots" has {"slot", "pid", "command"} for each of them; a pid of null is a process that
 * this user cannot see. */
PCC_API pcc_status pcc_writer_stats_json(pcc_writer *writer, char **json, pcc_error *error);

/*
 * The staging pool: one region, page-aligned, fixed until the writer is closed or abandoned. Its
 * bytes belong to the writer: use this to register the memory with a device driver, such as with
 * cudaHostRegister, or to lock it. Undo that before pcc_writer_close, which unmaps the region.
 */
PCC_API pcc_status pcc_writer_pool(pcc_writer *writer, void **start, uint64_t *byte_count,
                                   pcc_error *error);

/*
 * Waits until nothing is in flight, marks the file as cleanly closed, unlocks it and frees the
 * writer, for every returned status. Tickets stay valid.
 */
PCC_API pcc_status pcc_writer_close(pcc_writer *writer, pcc_error *error);

/*
 * The same, and sets *writer to NULL when it is freed; does nothing for NULL. For languages in
 * which an exception may come between this call and the code that records the call.
 */
PCC_API pcc_status pcc_writer_dispose(pcc_writer **writer, pcc_error *error);

/* Frees the writer without waiting for checkpoints in flight, like a crash. For tests and exits. */
PCC_API void pcc_writer_abandon(pcc_writer *writer);

#define PCC_TICKET_STAGING 0    /* the caller's memory is still being read */
#define PCC_TICKET_STAGED 1     /* copied; being made durable */
#define PCC_TICKET_DURABLE 2
#define PCC_TICKET_SUPERSEDED 3 /* a newer checkpoint is durable; this one was released */
#define PCC_TICKET_SKIPPED 4
#define PCC_TICKET_FAILED 5

PCC_API int32_t pcc_ticket_state(const pcc_ticket *ticket);
PCC_API uint64_t pcc_ticket_sequence(const pcc_ticket *ticket);
/* The sequence that superseded this one, or 0. */
PCC_API uint64_t pcc_ticket_superseded_by(const pcc_ticket *ticket);
/* Nanoseconds from save to staged, and from save to durable; 0 while not reached. */
PCC_API uint64_t pcc_ticket_staged_nanoseconds(const pcc_ticket *ticket);
PCC_API uint64_t pcc_ticket_durable_nanoseconds(const pcc_ticket *ticket);

/* Waits until staged. timeout_ms < 0 waits without bound. A failed checkpoint also counts as
 * staged (its memory is no longer read) and reports its failure from pcc_ticket_wait. */
PCC_API pcc_status pcc_ticket_wait_staged(pcc_ticket *ticket, int64_t timeout_ms,
                                          pcc_error *error);

/* Waits until the early tensors are copied, for applications that let only those change before the
 * ticket is staged. Otherwise as pcc_ticket_wait_staged; at once when no tensor is early. It waits
 * for no device: hold the streams that change early tensors of one. */
PCC_API pcc_status pcc_ticket_wait_early(pcc_ticket *ticket, int64_t timeout_ms, pcc_error *error);

/*
 * Has everything that is queued on a stream from now on wait until the checkpoint no longer reads
 * memory of the stream's device: the device waits, and the calling thread continues. Call it before
 * you queue work that changes the saved tensors. The call waits until tensors of the host are
 * copied and the copies of the others are queued, which is soon when the staging pool has room for
 * all of them: tensors of the host may change when it returns. With only_early (1), the call and
 * the stream wait only for early tensors. After PCC_TIMEOUT nothing is held back.
 */
PCC_API pcc_status pcc_ticket_hold_stream(pcc_ticket *ticket, const pcc_place *place,
                                          uint32_t only_early, int64_t timeout_ms,
                                          pcc_error *error);

/* Waits for the end: PCC_OK when durable, PCC_SUPERSEDED, PCC_SKIPPED, or why it failed. */
PCC_API pcc_status pcc_ticket_wait(pcc_ticket *ticket, int64_t timeout_ms, pcc_error *error);
PCC_API void pcc_ticket_free(pcc_ticket *ticket);

/* ------------------------------------------------------------------ groups */

/*
 * A file of a group is one of several files that one job writes, one for each rank. The
 * application tells the writer what all ranks agreed on; spec/GROUP.md has the rules. A checkpoint
 * of such a file is named by its attempt and its step. A writer keeps every durable checkpoint
 * until the application has decided on it, and as many complete ones as the file retains.
 */
typedef struct pcc_attempt {
    uint32_t struct_size;
    uint32_t has_base;      /* 1: the attempt continues from the group checkpoint below */
    uint64_t attempt;       /* above every attempt that any rank has seen, at least 1; or that of
                               the file, to continue with it after a resize */
    uint64_t base_attempt;
    uint64_t base_step;
    uint64_t base_sequence; /* of that checkpoint in this file; 0: it is in other files */
    const uint64_t *complete_sequences; /* of older checkpoints in this file that are durable on all
                                           ranks, too: the newest of them stay */
    size_t complete_count;
} pcc_attempt;

/*
 * Begins an attempt, durably: the superblock names it, the watermark and the base as anchor.
 * Durable checkpoints that are newer than the base in this file are void. Nothing may be in
 * flight. Saves return PCC_INVALID_ARGUMENT before this call. PCC_NO_CHECKPOINT when this file
 * does not hold the base. With the attempt of the file and no base, the attempt continues: call
 * pcc_writer_decide again for what was decided on, because the file has only the watermark.
 */
PCC_API pcc_status pcc_writer_begin_attempt(pcc_writer *writer, const pcc_attempt *attempt,
                                            pcc_error *error);

/*
 * Records what all ranks know of a durable checkpoint of this attempt. With is_complete (1) it is
 * durable on all ranks, the watermark rises to it, and older ones may go. Otherwise it is void.
 * A sequence on which was decided already, or that was not durable, is left alone.
 */
PCC_API pcc_status pcc_writer_decide(pcc_writer *writer, uint64_t sequence, uint32_t is_complete,
                                     pcc_error *error);

/*
 * The decision of a restart, which is the same on all ranks that have the same reports in the same
 * order. `reports_json` is an array of objects
 * {"path": text, "report": object of pcc_reader_report_json} or {"path": text, "error": text}.
 * Two reports of one file count as the later one. When the checkpoint to resume cannot be used
 * after all, decide again with the object {"rejected": {"attempt", "step", "cause"}} in the array,
 * too: "damaged" when a part could not be read or did not verify, "void" when the ranks did not
 * hold the same. The next one of "checkpoints" is no substitute for that decision, because a newer
 * one than it may need a file that is missing. `decision_json` gets an object (pcc_free it):
 *   "run": the run UUID, or null when there are no files of a group;
 *   "outcome": "resume" from the first of "checkpoints" that is complete, "begin" at step 0, or
 *     "refuse", because files are needed that are missing or cannot be used, or because files do
 *     not belong together;
 *   "lost": {"attempt", "step"} of the newest checkpoint that was durable on all ranks, or may have
 *     been, when only older ones or none are complete now; else null;
 *   "next_attempt": the number of the attempt to begin; null when the numbers are used up;
 *   "watermark": {"attempt", "step"} of the newest one in any file, or null;
 *   "checkpoints": newest first, objects with "attempt", "step", "world_size", "is_complete",
 *     "files": [{"rank", "path", "slot", "sequence", "reason"}] by rank, and
 *     "missing": [{"rank", "last_rank", "reason"}], consecutive ranks that lack it for one reason;
 *   "omitted_count": incomplete ones beyond the 128 newest, which are not in "checkpoints";
 *   "worlds": [{"world_size", "file_count", "missing"}], the files of each number of ranks;
 *   "problems": [{"kind", "path", "message"}] of files that cannot be used, or do not belong
 *     together: "unusable", "no-group"; "other-run", "other-name", "two-files", "two-worlds".
 * PCC_INVALID_ARGUMENT for JSON that is not such an array.
 */
PCC_API pcc_status pcc_group_decide(const char *reports_json, char **decision_json,
                                    pcc_error *error);

/* ------------------------------------------------------------------ reading */

typedef struct pcc_reader pcc_reader;

struct pcc_checkpoint_info {
    uint64_t sequence;
    uint64_t step;
    uint64_t payload_byte_count;
    uint64_t stored_byte_count;
    uint64_t completed_time; /* nanoseconds since 1970-01-01 UTC */
    uint32_t slot;
    uint32_t is_anchored;    /* 1: named by the newest superblock, or retained by it */
    uint8_t logical_digest[16];
    uint64_t attempt;        /* of the group that saved it; 0 without a group */
};

typedef struct pcc_reader_options {
    uint32_t struct_size;
    uint32_t worker_count;   /* threads of a load; default 4 */
    const char *fingerprint; /* must match the file when not NULL */
    uint32_t is_forensic;    /* 1: for tools that show what is left of a damaged file: each chunk
                                is verified alone, also when others are damaged */
    uint32_t reserved;       /* 0 */
} pcc_reader_options;

/* Opens a file for reading, also while a writer is running. */
PCC_API pcc_status pcc_reader_open(const char *path, const pcc_reader_options *options,
                                   pcc_reader **reader, pcc_error *error);

/*
 * Reads the metadata again and lists the checkpoints that can be loaded, in the order in which
 * recovery tries them: newest first. `capacity` entries are written at most; `count` gets how
 * many there are.
 */
PCC_API pcc_status pcc_reader_list(pcc_reader *reader, pcc_checkpoint_info *infos,
                                   size_t capacity, size_t *count, pcc_error *error);

/* Recovery's report on the file and on every slot, with reason codes, as JSON (pcc_free it). */
PCC_API pcc_status pcc_reader_report_json(pcc_reader *reader, char **json, pcc_error *error);

typedef struct pcc_load_options {
    uint32_t struct_size;
    uint32_t has_step;         /* 1: only a checkpoint of `step` */
    uint64_t step;
    uint64_t sequence_maximum; /* none that was begun after this one; 0: any */
} pcc_load_options;

/*
 * Selects the newest checkpoint that fits, as a resume must: pins its slot, so that no writer
 * reuses it until the next select or close, and verifies all of it when no superblock names it.
 * A checkpoint that fails is passed over. PCC_NO_CHECKPOINT, PCC_BUSY or PCC_CORRUPT when none is
 * left: the message gives the reason for every slot.
 */
PCC_API pcc_status pcc_reader_select_newest(pcc_reader *reader, const pcc_load_options *options,
                                            pcc_checkpoint_info *info, pcc_error *error);

/*
 * Continues with the next older one, because the selected checkpoint cannot be used. `reason` is
 * the error that a call on it reported, or that the application found: only its code and message
 * count. PCC_CORRUPT and PCC_IO pass the checkpoint over. PCC_BUSY starts over with the current
 * contents of the file. Another code does not concern the checkpoint, and is returned: the search
 * has then ended, and nothing is selected. pcc_reader_select ends it in the same way.
 */
PCC_API pcc_status pcc_reader_select_next(pcc_reader *reader, const pcc_error *reason,
                                          pcc_checkpoint_info *info, pcc_error *error);

/*
 * The checkpoints that the search passed over, newest first, as a JSON array of
 * objects with slot, sequence, step, code and message (pcc_free it).
 */
PCC_API pcc_status pcc_reader_rejections_json(pcc_reader *reader, char **json, pcc_error *error);

/* Selects one checkpoint in particular, and pins its slot. The first read of one that no
 * superblock names verifies all of it; other reads verify the chunks that they touch. */
PCC_API pcc_status pcc_reader_select(pcc_reader *reader, uint64_t sequence,
                                     pcc_checkpoint_info *info, pcc_error *error);

/* The safetensors JSON header of the selected checkpoint (pcc_free it), and the payload offset
 * at which tensor data begins. */
PCC_API pcc_status pcc_reader_manifest_json(pcc_reader *reader, char **json,
                                            uint64_t *data_offset, pcc_error *error);

/* A part of the payload and where to copy it. */
typedef struct pcc_destination {
    uint64_t payload_offset;
    uint64_t byte_count;
    void *data;
    pcc_place place; /* where `data` is; zeros for the host */
} pcc_destination;

/*
 * Reads the chunks that the destinations touch, each once, in parallel; verifies each against its
 * digest; then copies, to a device too: what you queue on any stream afterwards finds the bytes. On
 * PCC_CORRUPT the destinations hold an unspecified mixture: load another checkpoint.
 */
PCC_API pcc_status pcc_reader_load(pcc_reader *reader, const pcc_destination *destinations,
                                   size_t count, pcc_error *error);

/* Verifies every chunk of the selected checkpoint and its logical digest. */
PCC_API pcc_status pcc_reader_verify(pcc_reader *reader, pcc_error *error);
/* Payload bytes that pcc_reader_verify, pcc_reader_copy, or the proof of a select call has reached,
 * so that another thread can show the progress. */
PCC_API uint64_t pcc_reader_verified_byte_count(pcc_reader *reader);

#define PCC_COPY_FILE 0    /* a checkpoint file with this checkpoint */
#define PCC_COPY_PAYLOAD 1 /* the payload alone, which for tensors is a .safetensors file */

typedef struct pcc_copy_options {
    uint32_t struct_size;
    uint32_t form;             /* PCC_COPY_* */
    uint32_t replace_existing; /* 1: replace a file at this path, once the copy is durable */
    uint32_t allow_network;    /* 1: accept a network file system */
    uint32_t is_background;    /* 1: the threads of the copy, the calling one among them, run at a
                                  nice value of 10 from now on */
    uint32_t reserved;         /* 0 */
} pcc_copy_options;

/*
 * Copies the selected checkpoint to a new file, also while a writer is running: the slot stays
 * pinned, and every byte is verified during the copy. The copy keeps step, sequence, times,
 * metadata and fingerprint. It appears under its name when it is complete and durable; otherwise
 * nothing is left of it. A killed process leaves NAME.creating-NUMBER, which the next copy to that
 * name removes. PCC_BUSY when an urgent save took the slot, PCC_EXISTS, PCC_NO_SPACE, PCC_CLOSED
 * after pcc_reader_cancel.
 */
PCC_API pcc_status pcc_reader_copy(pcc_reader *reader, const char *path,
                                   const pcc_copy_options *options, pcc_error *error);
/* Ends the pcc_reader_copy that another thread is running, and every later one. */
PCC_API void pcc_reader_cancel(pcc_reader *reader);
/*
 * Removes the leftovers of killed programs that were creating the file at `path`: its name with
 * .creating-NUMBER behind it. A file that a running program is creating stays. The next copy to
 * that name, and pcc_create, also remove leftovers.
 */
PCC_API pcc_status pcc_sweep(const char *path, pcc_error *error);
PCC_API void pcc_reader_close(pcc_reader *reader);
/* The same, and sets *reader to NULL first, so that an interrupted caller knows what is left to
 * close. Does nothing when it is NULL already. */
PCC_API void pcc_reader_dispose(pcc_reader **reader);

/* Frees a string that this library returned; NULL is allowed. */
PCC_API void pcc_free(char *text);

/* ------------------------------------------------------------------ choosing an interval */

typedef struct pcc_interval_options {
    uint32_t struct_size;
    uint32_t in_flight;     /* as the file was created; default 2 */
    double step_seconds;    /* one step with nothing in flight; required */
    double cost_seconds;    /* what one save costs training: blocked, and steps that it slowed */
    double durable_seconds; /* from a save until it is durable; required */
    double budget;          /* how much longer training may take, 1e-6 to 1; default 0.02 */
    double mtbf_seconds;    /* mean time between the failures that hit the job; default none */
    double restart_seconds; /* from a failure until training continues */
    uint64_t min_steps;     /* default 1 */
    uint64_t max_steps;     /* default 1000000000, which is the most */
} pcc_interval_options;

#define PCC_BOUND_BUDGET 0     /* a shorter interval costs more than the budget */
#define PCC_BOUND_THROUGHPUT 1 /* a shorter one makes checkpoints wait for a slot */
#define PCC_BOUND_FAILURES 2   /* a shorter one costs more than it saves at the failures */
#define PCC_BOUND_STEP 3       /* no interval is shorter than one step */
#define PCC_BOUND_LIMIT 4      /* min_steps or max_steps; the overhead can exceed the budget */

typedef struct pcc_interval {
    uint64_t steps;      /* from one save to the next */
    uint32_t bound;      /* PCC_BOUND_* */
    uint32_t reserved;
    double overhead;     /* how much longer training takes at this interval, as a share */
    double goodput;      /* the useful share of the time; 0 without mtbf_seconds */
    double lost_seconds; /* what a failure takes in the mean: half an interval, and the time until
                            durable */
} pcc_interval;

/*
 * The interval for a job that measured its saves: the shortest one that keeps to the budget and
 * lets no checkpoint wait for a slot. With mtbf_seconds it is the one with the best goodput among
 * those and longer ones. It computes only; spec/MODEL.md has the formulas. PCC_INVALID_ARGUMENT for
 * a number that is out of range or none.
 */
PCC_API pcc_status pcc_choose_interval(const pcc_interval_options *options,
                                       pcc_interval *interval, pcc_error *error);

#ifdef __cplusplus
}
#endif
#endif
