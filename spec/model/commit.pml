/*
 * The commit and recovery protocol of COMMIT.md and RECOVERY.md, for spin(1).
 *
 * One file of N + 1 slots (retain 1), two chunks a slot, and one writer with up to N checkpoints in
 * flight. Every action that the real engine's threads can interleave is one alternative of one
 * loop, so every order of them is tried. A crash can come between any two: a *kill* leaves the page
 * cache, a *cut* leaves of every unflushed write the old bytes, the new ones, or neither (torn).
 *
 * What a chunk holds is the sequence of the checkpoint that wrote it; TORN matches no digest. A
 * header is the sequence and whether it is complete. A superblock's two copies are one here: both
 * whole, or torn. Digests find every mismatch, as they do on the medium. What digests cannot find is
 * memory that changed while it was copied: such a chunk holds the sequence + CHANGED.
 *
 *   I1  what was acknowledged, or something newer, is recovered
 *   I2  a checkpoint that is recovered holds its own chunks and no others
 *   A   the checkpoint that the newest whole superblock anchors holds its own chunks
 *   I3  no sequence is given twice; a generation lies above every one that was flushed
 *   R   a reader never finds a complete header over chunks of another checkpoint (rule 7), unless a
 *       flush failed and took the mark with it
 *   V   a checkpoint that its caller did not approve is never recovered (rule 9)
 *
 * Variants with a bug that must violate one of them: -DBUG_… below; `make model` runs them all.
 */
#ifndef N
#define N 2
#endif
#ifndef SAVES
#define SAVES (N + 2)
#endif
#ifndef CRASHES
#define CRASHES 2
#endif
/* Sequences that a superblock reserves beyond the next one; 256 in the real file. */
#define RESERVE 2

#define SLOTS (N + 1)
#define CHUNKS 2
#define NONE 255
#define TORN 254
#define CHANGED 64

/* The medium: what a cut leaves, and what waits in front of it (NONE: nothing). */
byte chunk[SLOTS * CHUNKS], wchunk[SLOTS * CHUNKS];
byte head[SLOTS], whead[SLOTS];              /* 2 × sequence, + 1 when complete */
byte super_gen[2], super_slot[2], super_seq[2], super_limit[2];
bool wsuper[2];
byte wsuper_gen[2], wsuper_slot[2], wsuper_seq[2], wsuper_limit[2];

/* The writer's memory. */
mtype = { FREE, INFLIGHT, KEPT, QUARANTINED };
mtype use[SLOTS];
byte seq[SLOTS];                             /* of the checkpoint in flight */
byte todo[SLOTS];                            /* bit 0: the mark, bits 1 and 2: the chunks */
bool asks[SLOTS];                            /* approval is awaited */
bool changes[SLOTS];                         /* its memory changes before it is copied */
bool batched[SLOTS];                         /* in the committer's hands */
mtype = { IDLE, SEALED, FLUSHED, ANCHORED, STOPPED, CLOSED };
mtype committer = CLOSED;
byte anchor_seq, anchor_slot = NONE, generation, next_seq, limit_seq;
byte next_slot, next_anchor, next_limit;     /* what the superblock being written says */
bool adopting;

/* What the outside world knows, and bounds. */
byte acknowledged;                           /* the highest sequence that a caller was told of */
byte given;                                  /* the highest sequence ever given */
byte generated;                              /* the highest generation that F2 covered */
byte saves, crashes, failures;
byte i, j, best, best_slot, newest, seen, first, second;
bool whole;

#define COMPLETE(h) ((h) != TORN && (h) % 2 == 1)
#define SEQ(h) ((h) / 2)
#define ORIGIN(c) ((c) < TORN -> (c) % CHANGED : (c))

/* ---------------------------------------------------------------- the medium */

inline flush_all() {
    i = 0;
    do
    :: i < SLOTS * CHUNKS ->
        if
#ifdef BUG_WRONG_RANGE
        /* The flush covers a range that ends one chunk too early. */
        :: i == SLOTS * CHUNKS - 1 -> skip
        :: i < SLOTS * CHUNKS - 1 && wchunk[i] != NONE -> chunk[i] = wchunk[i]; wchunk[i] = NONE
#else
        :: wchunk[i] != NONE -> chunk[i] = wchunk[i]; wchunk[i] = NONE
#endif
        :: else -> skip
        fi;
        i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < SLOTS ->
        if
        :: whead[i] != NONE -> head[i] = whead[i]; whead[i] = NONE
        :: else -> skip
        fi;
        i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < 2 ->
        if
        :: wsuper[i] ->
            super_gen[i] = wsuper_gen[i]; super_slot[i] = wsuper_slot[i];
            super_seq[i] = wsuper_seq[i]; super_limit[i] = wsuper_limit[i]; forget_super(i)
        :: else -> skip
        fi;
        i++
    :: else -> break
    od
}

inline forget_super(k) {
    wsuper[k] = false; wsuper_gen[k] = 0; wsuper_slot[k] = 0; wsuper_seq[k] = 0;
    wsuper_limit[k] = 0
}

inline tear_super(k) {
    super_gen[k] = 0; super_slot[k] = 0; super_seq[k] = 0; super_limit[k] = 0
}

/* Each unflushed write is lost, whole or torn on the medium: a power cut, or a flush that failed. */
inline settle() {
    i = 0;
    do
    :: i < SLOTS * CHUNKS ->
        if
        :: wchunk[i] == NONE
        :: wchunk[i] != NONE -> wchunk[i] = NONE
        :: wchunk[i] != NONE -> chunk[i] = wchunk[i]; wchunk[i] = NONE
        :: wchunk[i] != NONE -> chunk[i] = TORN; wchunk[i] = NONE
        fi;
        i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < SLOTS ->
        if
        :: whead[i] == NONE
        :: whead[i] != NONE -> whead[i] = NONE
        :: whead[i] != NONE -> head[i] = whead[i]; whead[i] = NONE
        :: whead[i] != NONE -> head[i] = TORN; whead[i] = NONE
        fi;
        i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < 2 ->
        if
        :: !wsuper[i]
        :: wsuper[i] -> forget_super(i)
        :: wsuper[i] ->
            super_gen[i] = wsuper_gen[i]; super_slot[i] = wsuper_slot[i];
            super_seq[i] = wsuper_seq[i]; super_limit[i] = wsuper_limit[i]; forget_super(i)
        :: wsuper[i] -> tear_super(i); forget_super(i)
        fi;
        i++
    :: else -> break
    od
}

/* What a read returns: the page cache in front of the medium. */
#define READ_HEAD(s) (whead[s] != NONE -> whead[s] : head[s])
#define READ_CHUNK(k) (wchunk[k] != NONE -> wchunk[k] : chunk[k])
#define READ_GEN(p) (wsuper[p] -> wsuper_gen[p] : super_gen[p])
#define READ_SEQ(p) (wsuper[p] -> wsuper_seq[p] : super_seq[p])
#define READ_SLOT(p) (wsuper[p] -> wsuper_slot[p] : super_slot[p])
#define READ_LIMIT(p) (wsuper[p] -> wsuper_limit[p] : super_limit[p])

/* ---------------------------------------------------------------- the writer */

inline write_super(slot_, seq_) {
    generation++;
    assert(generation > generated);                                             /* I3 */
    next_limit = next_seq + RESERVE;
#ifdef BUG_LIMIT_EARLY
    limit_seq = next_limit;
#endif
    wsuper_gen[generation % 2] = generation; wsuper_slot[generation % 2] = slot_;
    wsuper_seq[generation % 2] = seq_; wsuper_limit[generation % 2] = next_limit;
    wsuper[generation % 2] = true
}

inline clear(k) {
    seq[k] = 0; todo[k] = 0; asks[k] = false; changes[k] = false; batched[k] = false
}

inline forget_writer() {
    i = 0;
    do
    :: i < SLOTS ->
        use[i] = FREE; clear(i); i++
    :: else -> break
    od;
    committer = CLOSED; adopting = false;
    anchor_seq = 0; anchor_slot = NONE; generation = 0; next_seq = 0; limit_seq = 0;
    next_slot = 0; next_anchor = 0; next_limit = 0; best = 0; best_slot = 0; newest = 0;
    whole = false;
    i = 0; j = 0
}

/* Opening: F0, then the newest checkpoint that is anchored, or complete with every chunk. */
inline recover() {
#ifndef BUG_NO_F0
    flush_all();
#endif
    first = READ_GEN(0); second = READ_GEN(1);
    newest = (first > second -> 0 : 1);
    generation = READ_GEN(newest);
    anchor_seq = READ_SEQ(newest);
    anchor_slot = READ_SLOT(newest);
    next_seq = READ_LIMIT(newest);
    best = 0; best_slot = NONE;
    j = 0;
    do
    :: j < SLOTS ->
        /* The header and the chunks as they read. */
        seen = READ_HEAD(j); first = READ_CHUNK(j * CHUNKS); second = READ_CHUNK(j * CHUNKS + 1);
        if
        :: seen != TORN && SEQ(seen) >= next_seq -> next_seq = SEQ(seen) + 1
        :: else -> skip
        fi;
        if
        :: anchor_seq != 0 && j == anchor_slot ->
            /* What F1 covered before it was anchored, and nothing may overwrite since. */
            assert(COMPLETE(seen) && SEQ(seen) == anchor_seq);                  /* A */
            assert(first == anchor_seq && second == anchor_seq)                 /* A */
        :: else -> skip
        fi;
        if
        :: COMPLETE(seen) && ORIGIN(first) == SEQ(seen) && ORIGIN(second) == SEQ(seen) &&
                SEQ(seen) > best ->
            best = SEQ(seen); best_slot = j;
            assert(first == best && second == best)                             /* V */
        :: else -> skip
        fi;
        j++
    :: else -> break
    od;
    assert(best >= acknowledged);                                               /* I1 */
    anchor_seq = best; anchor_slot = best_slot;
    if
    :: best_slot != NONE -> use[best_slot] = KEPT
    :: else -> skip
    fi;
    write_super(best_slot, best);
    adopting = true;
    committer = ANCHORED;
    i = 0; j = 0; best = 0; best_slot = 0; newest = 0; seen = 0; first = 0; second = 0
}

inline take(s) {
    next_seq++;
    seq[s] = next_seq - 1;
    assert(seq[s] > given);                                                     /* I3 */
    given = seq[s];
    use[s] = INFLIGHT; todo[s] = 7; saves++;
    /* Every other checkpoint is saved with needs_approval. */
    asks[s] = seq[s] % 2
}

inline count_inflight() {
    best = 0; i = 0;
    do
    :: i < SLOTS -> best = best + (use[i] == INFLIGHT -> 1 : 0); i++
    :: else -> break
    od;
    i = 0
}

#ifdef BUG_NO_APPROVAL
#define APPROVED(s) true
#else
#define APPROVED(s) (!asks[s])
#endif

/* The committer takes what is written and approved, and seals it. */
inline seal_all() {
    i = 0;
    do
    :: i < SLOTS ->
        if
#ifdef BUG_NO_JOIN
        :: use[i] == INFLIGHT && (todo[i] & 3) == 0 && !batched[i] ->
#else
        :: use[i] == INFLIGHT && todo[i] == 0 && !batched[i] && APPROVED(i) ->
#endif
            batched[i] = true; whead[i] = 2 * seq[i] + 1
        :: else -> skip
        fi;
        i++
    :: else -> break
    od;
    i = 0
}

/* After F1: the newest of the batch, unless something newer is anchored already. */
inline plan() {
    next_anchor = 0; next_slot = NONE; i = 0;
    do
    :: i < SLOTS ->
        if
        :: batched[i] && seq[i] > next_anchor -> next_anchor = seq[i]; next_slot = i
        :: else -> skip
        fi;
        i++
    :: else -> break
    od;
    i = 0;
#ifndef BUG_LATE_OLDER
    if
    :: next_anchor < anchor_seq -> next_slot = NONE
    :: else -> skip
    fi
#endif
}

/* After F2, or when nothing was published: slots that nothing names are free. */
inline settle_batch() {
    if
    :: next_slot != NONE ->
        if
        :: anchor_slot != NONE && use[anchor_slot] == KEPT -> use[anchor_slot] = FREE
        :: else -> skip
        fi;
        use[next_slot] = KEPT; clear(next_slot);
        anchor_slot = next_slot; anchor_seq = next_anchor;
        acknowledged = (next_anchor > acknowledged -> next_anchor : acknowledged)
    :: else -> skip
    fi;
    i = 0;
    do
    :: i < SLOTS ->
        if
        :: batched[i] -> use[i] = FREE; clear(i)
        :: else -> skip
        fi;
        i++
    :: else -> break
    od;
    i = 0; next_slot = 0; next_anchor = 0;
    committer = IDLE
}

/* F1 failed: everything in flight that had written anything fails, its slot is not used again. */
inline quarantine() {
    i = 0;
    do
    :: i < SLOTS ->
        if
        :: use[i] == INFLIGHT -> use[i] = QUARANTINED; clear(i)
        :: else -> skip
        fi;
        i++
    :: else -> break
    od;
    i = 0;
    committer = IDLE
}

#ifdef BUG_OTHER_BUFFER
/* The digest was of other bytes than those that are written. */
#define WRITTEN(s, c) (c == 1 -> TORN : seq[s])
#else
#define WRITTEN(s, c) (seq[s])
#endif
#ifdef BUG_LATE_MARK
#define MAY_WRITE(s, bit) (todo[s] & bit)
#else
#define MAY_WRITE(s, bit) ((todo[s] & (bit | 1)) == bit)
#endif

inline write_chunk(s_, c_) {
    assert(!COMPLETE(READ_HEAD(s_)) || committer == STOPPED);                   /* R */
    wchunk[s_ * CHUNKS + c_] = WRITTEN(s_, c_)
}

/* The caller's memory changed before this copy, and its digest is of what was copied. */
inline write_changed(s_) {
    assert(!COMPLETE(READ_HEAD(s_)) || committer == STOPPED);                   /* R */
    wchunk[s_ * CHUNKS] = seq[s_] + CHANGED; changes[s_] = true
}

active proctype file() {
    byte s;
    /* A new file: generations 1 and 2, empty headers, nothing pending. */
    d_step {
        i = 0;
        do
        :: i < SLOTS * CHUNKS -> wchunk[i] = NONE; i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < SLOTS -> whead[i] = NONE; use[i] = FREE; i++
        :: else -> break
        od;
        i = 0;
        super_gen[1] = 1; super_gen[0] = 2; generated = 2; super_limit[0] = 1; super_limit[1] = 1;
        super_slot[0] = NONE; super_slot[1] = NONE
    }
end:
    do
    /* -- open */
    :: committer == CLOSED -> atomic { recover() }

    /* -- take, mark, chunks, approve or reject: any slot, any order */
    :: committer != CLOSED && committer != STOPPED && !adopting && saves < SAVES ->
        atomic {
            count_inflight();
            if
            :: best < N && next_seq < limit_seq ->
                best = 0; s = 0;
                do
                :: s < SLOTS && use[s] != FREE -> s++
                :: s < SLOTS && use[s] == FREE -> take(s); break
                :: s == SLOTS -> break
                od
            :: else -> best = 0
            fi;
            s = 0
        }
    :: (todo[0] & 1) -> d_step { whead[0] = 2 * seq[0]; todo[0] = todo[0] & 6 }
    :: MAY_WRITE(0, 2) -> d_step { write_chunk(0, 0); todo[0] = todo[0] & 5 }
    :: MAY_WRITE(0, 2) && asks[0] -> d_step { write_changed(0); todo[0] = todo[0] & 5 }
    :: MAY_WRITE(0, 4) -> d_step { write_chunk(0, 1); todo[0] = todo[0] & 3 }
    :: asks[0] && todo[0] == 0 && !changes[0] -> asks[0] = false
    :: asks[0] && todo[0] == 0 && changes[0] && !batched[0] ->
        d_step { use[0] = FREE; clear(0) }
    :: (todo[1] & 1) -> d_step { whead[1] = 2 * seq[1]; todo[1] = todo[1] & 6 }
    :: MAY_WRITE(1, 2) -> d_step { write_chunk(1, 0); todo[1] = todo[1] & 5 }
    :: MAY_WRITE(1, 2) && asks[1] -> d_step { write_changed(1); todo[1] = todo[1] & 5 }
    :: MAY_WRITE(1, 4) -> d_step { write_chunk(1, 1); todo[1] = todo[1] & 3 }
    :: asks[1] && todo[1] == 0 && !changes[1] -> asks[1] = false
    :: asks[1] && todo[1] == 0 && changes[1] && !batched[1] ->
        d_step { use[1] = FREE; clear(1) }
#if N >= 2
    :: (todo[2] & 1) -> d_step { whead[2] = 2 * seq[2]; todo[2] = todo[2] & 6 }
    :: MAY_WRITE(2, 2) -> d_step { write_chunk(2, 0); todo[2] = todo[2] & 5 }
    :: MAY_WRITE(2, 2) && asks[2] -> d_step { write_changed(2); todo[2] = todo[2] & 5 }
    :: MAY_WRITE(2, 4) -> d_step { write_chunk(2, 1); todo[2] = todo[2] & 3 }
    :: asks[2] && todo[2] == 0 && !changes[2] -> asks[2] = false
    :: asks[2] && todo[2] == 0 && changes[2] && !batched[2] ->
        d_step { use[2] = FREE; clear(2) }
#endif
#if N >= 3
    :: (todo[3] & 1) -> d_step { whead[3] = 2 * seq[3]; todo[3] = todo[3] & 6 }
    :: MAY_WRITE(3, 2) -> d_step { write_chunk(3, 0); todo[3] = todo[3] & 5 }
    :: MAY_WRITE(3, 2) && asks[3] -> d_step { write_changed(3); todo[3] = todo[3] & 5 }
    :: MAY_WRITE(3, 4) -> d_step { write_chunk(3, 1); todo[3] = todo[3] & 3 }
    :: asks[3] && todo[3] == 0 && !changes[3] -> asks[3] = false
    :: asks[3] && todo[3] == 0 && changes[3] && !batched[3] ->
        d_step { use[3] = FREE; clear(3) }
#endif

    /* -- seal */
    :: committer == IDLE ->
        atomic {
            seal_all();
            whole = false; i = 0;
            do
            :: i < SLOTS -> whole = whole || batched[i]; i++
            :: else -> break
            od;
            i = 0;
            committer = (whole -> SEALED : IDLE);
            whole = false
        }
    /* -- F1 */
    :: committer == SEALED ->
        d_step {
#ifndef BUG_SKIP_F1
            flush_all();
#endif
            committer = FLUSHED
        }
    :: committer == SEALED && failures < 1 ->
        atomic {
            settle(); failures++;
#ifdef BUG_RETRY_FLUSH
            committer = FLUSHED
#else
            quarantine()
#endif
        }
    /* -- anchor */
    :: committer == FLUSHED ->
        d_step {
            plan();
            if
            :: next_slot != NONE ->
                write_super(next_slot, next_anchor);
#ifdef BUG_REUSE_EARLY
                if
                :: anchor_slot != NONE && use[anchor_slot] == KEPT -> use[anchor_slot] = FREE
                :: else -> skip
                fi;
#endif
                committer = ANCHORED
            :: else -> settle_batch()
            fi
        }
    /* -- F2, release */
    :: committer == ANCHORED ->
        d_step {
#ifndef BUG_SKIP_F2
            flush_all();
#endif
            generated = generation; limit_seq = next_limit;
            if
            :: adopting -> adopting = false; committer = IDLE
            :: else -> settle_batch()
            fi
        }
    :: committer == ANCHORED && failures < 1 ->
        atomic { settle(); failures++; committer = STOPPED }

    /* -- a crash: the process is killed, or the power is cut */
    :: committer != CLOSED && crashes < CRASHES -> atomic { crashes++; forget_writer() }
    :: crashes < CRASHES -> atomic { crashes++; settle(); forget_writer() }
    od
}
