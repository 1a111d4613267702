/*
 * The protocol of GROUP.md for spin(1): the ranks of a job, their files, and restarts.
 *
 * The job runs on two ranks (files 0 and 1) or on one (file 2), and each restart chooses. The files
 * of the other number of ranks stay. They may be deleted, one after the other, once a checkpoint of
 * the attempt is known to be durable on all ranks; a later restart creates them again.
 *
 * The commit inside a file is one step here, because commit.pml has it in detail: a save takes a
 * slot, whose old contents are gone from then on, and later becomes durable or fails. A crash
 * leaves a save that was under way torn, torn under a complete header, complete, or complete and
 * named. Every order of the ranks' actions is tried.
 *
 *   G1  a checkpoint that a rank knew to be durable on all ranks, or a newer one, is chosen
 *   G2  every rank has its part of the chosen checkpoint
 *   G3  all parts are of one history: no name has two
 *   D   while all ranks run, one of them can take a step until every save has its verdict
 *   T   a restart is not refused because some files of the other number of ranks were deleted
 *
 * A name is an attempt and a step. The epoch of a part, which no rank knows, tells histories apart.
 * In a restart file 0 may be away; the next one finds it again. Variants with a mistake that must
 * violate one of these: -DBUG_… below; `make model` runs them all.
 */
#ifndef SLOTS
#define SLOTS 3
#endif
#ifndef SAVES
#define SAVES 3
#endif
#ifndef RESTARTS
#define RESTARTS 2
#endif
#define FILES 3
#define NONE 9
#define STEPS 16
#define NAME(a, s) ((a) * STEPS + (s))
#define STEP(n) ((n) % STEPS)
#define ATTEMPT(n) ((n) / STEPS)
#define AT(f, s) ((f) * SLOTS + (s))
#define END(f, n) ((f) * (SAVES + 1) + (n))
#define IN_WORLD(f) ((f) >= first && (f) < first + ranks)
#define ALL ((ranks == 2) -> 3 : 4)
#define BIT(f) (1 << (f))

/* The media. 0: nothing, or torn. */
byte name[FILES * SLOTS], epoch_of[FILES * SLOTS];
bool named[FILES * SLOTS];
bool torn[FILES * SLOTS];                    /* the header is complete, and the payload is not */
byte attempt[FILES], watermark[FILES];
bool deleted[FILES];                         /* until a rank creates it again */

/* The ranks' memory. */
mtype = { FREE, FLYING, KEPT };
mtype use[FILES * SLOTS] = FREE;
mtype = { UNDECIDED, COMPLETE, VOID };
mtype verdict[FILES * SLOTS] = UNDECIDED;
byte number[FILES * SLOTS];                  /* of the save; 0: from before this attempt */
byte flying_step[FILES * SLOTS];             /* of a save under way */
byte known[FILES];                           /* the watermark, not yet on the medium */
bool up[FILES], has_begun[FILES];
byte begun_saves[FILES], posted[FILES], applied[FILES], step_of[FILES];
mtype = { RUNNING, DURABLE, FAILED };
mtype ended[FILES * (SAVES + 1)] = RUNNING;

/* The exchange: who gave a bit for a save, and the AND of the bits. */
byte given[SAVES + 1];
bool all_durable[SAVES + 1];

/* The job. */
byte first, ranks, current, base, epoch, crashes, restarts, failures, rewinds, away = NONE;
bool is_running;
byte acknowledged;
byte f, s, n, i, best, choice, second, tried, limit, found0, found1;
bool free_slot, idle;
#ifdef BUG_WORLD
bool reads_file_2;
#endif

/* G3, of a part that becomes durable. */
inline check_name(file, slot) {
    i = 0;
    do
    :: i < FILES * SLOTS ->
        assert(name[i] != name[AT(file, slot)] || epoch_of[i] == epoch);
        i++
    :: else -> break
    od
}

/* ---------------------------------------------------------------- what a rank keeps */

/* Names the undecided and the newest complete one, and drops the rest: one durable superblock. */
inline write_superblock(file) {
    best = NONE;
    i = 0;
    do
    :: i < SLOTS ->
        if
        :: use[AT(file, i)] == KEPT && verdict[AT(file, i)] == COMPLETE &&
                (best == NONE || name[AT(file, i)] > name[AT(file, best)]) -> best = i
        :: else -> skip
        fi;
        i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < SLOTS ->
        if
        :: use[AT(file, i)] != KEPT -> named[AT(file, i)] = false
#ifdef BUG_RECYCLE
        /* Only the newest durable one is kept, as in a file without a group. */
        :: use[AT(file, i)] == KEPT && i == s -> named[AT(file, i)] = true
        :: use[AT(file, i)] == KEPT && i != s ->
            use[AT(file, i)] = FREE; named[AT(file, i)] = false
#else
        :: use[AT(file, i)] == KEPT && (verdict[AT(file, i)] == UNDECIDED || i == best) ->
            named[AT(file, i)] = true
        :: use[AT(file, i)] == KEPT && verdict[AT(file, i)] != UNDECIDED && i != best ->
#ifdef BUG_KEEP_VOID
            if
            :: verdict[AT(file, i)] == VOID -> named[AT(file, i)] = true
            :: else -> use[AT(file, i)] = FREE; named[AT(file, i)] = false
            fi
#else
            use[AT(file, i)] = FREE; named[AT(file, i)] = false
#endif
#endif
        fi;
        i++
    :: else -> break
    od;
    watermark[file] = known[file]
}

inline find_free(file) {
    free_slot = false; s = 0;
    do
    :: s < SLOTS && use[AT(file, s)] == FREE -> free_slot = true; break
    :: s < SLOTS && use[AT(file, s)] != FREE -> s++
    :: s >= SLOTS -> s = 0; break
    od
}

/* Clears `idle` when the rank has something under way, or a slot for its next save. */
inline look_busy(file) {
    best = NONE; s = 0;
    do
    :: s < SLOTS ->
        if
        :: use[AT(file, s)] == KEPT && verdict[AT(file, s)] == COMPLETE &&
                (best == NONE || name[AT(file, s)] > name[AT(file, best)]) -> best = s
        :: else -> skip
        fi;
        s++
    :: else -> break
    od;
    s = 0;
    do
    :: s < SLOTS ->
        if
        :: use[AT(file, s)] == FLYING -> idle = false
        :: use[AT(file, s)] == FREE && begun_saves[file] < SAVES -> idle = false
#ifndef BUG_KEEP_VOID
        :: use[AT(file, s)] == KEPT && verdict[AT(file, s)] == VOID &&
                begun_saves[file] < SAVES -> idle = false
#endif
        :: use[AT(file, s)] == KEPT && verdict[AT(file, s)] == COMPLETE && s != best &&
                begun_saves[file] < SAVES -> idle = false
        :: else -> skip
        fi;
        s++
    :: else -> break
    od
}

/* ---------------------------------------------------------------- crash and restart */

/* Memory is lost; a save under way leaves what a crash of a commit leaves. */
inline crash(file) {
    up[file] = false; has_begun[file] = false;
    i = 0;
    do
    :: i < SLOTS ->
        if
        :: use[AT(file, i)] == FLYING ->
            if
            :: skip
            :: name[AT(file, i)] = NAME(current, flying_step[AT(file, i)]); epoch_of[AT(file, i)] = epoch
            :: name[AT(file, i)] = NAME(current, flying_step[AT(file, i)]); epoch_of[AT(file, i)] = epoch;
                torn[AT(file, i)] = true
            :: name[AT(file, i)] = NAME(current, flying_step[AT(file, i)]); epoch_of[AT(file, i)] = epoch;
                named[AT(file, i)] = true
            fi
        :: else -> skip
        fi;
        use[AT(file, i)] = FREE; verdict[AT(file, i)] = UNDECIDED; number[AT(file, i)] = 0;
        flying_step[AT(file, i)] = 0;
        i++
    :: else -> break
    od;
    begun_saves[file] = 0; posted[file] = 0; applied[file] = 0; step_of[file] = 0;
    known[file] = 0;
    i = 0;
    do
    :: i <= SAVES -> ended[END(file, i)] = RUNNING; i++
    :: else -> break
    od
}

#ifdef BUG_STEP
#define SAME(a, b) (STEP(a) == STEP(b))
#else
#define SAME(a, b) ((a) == (b))
#endif

/* What a restart reads. */
#ifdef BUG_WORLD
#define IS_READ(f) ((f) != away && ((f) == 2) == reads_file_2)
#else
#define IS_READ(f) ((f) != away)
#endif

/* Whether a file that is read has `wanted`. */
inline look(file, wanted, result) {
    result = NONE; i = 0;
    do
    :: i < SLOTS && IS_READ(file) && name[AT(file, i)] != 0 && SAME(name[AT(file, i)], wanted) ->
        result = i; break
    :: i < SLOTS && !(IS_READ(file) && name[AT(file, i)] != 0 && SAME(name[AT(file, i)], wanted)) ->
        i++
    :: i >= SLOTS -> break
    od
}

/* Of the file and slot of choose(). */
#define IS_TORN (f == 2 -> torn[AT(2, s)] : (torn[AT(0, found0)] || torn[AT(1, found1)]))

/*
 * The two newest complete checkpoints that can be loaded, and the number of the next attempt.
 * `tried` is the newest of those whose headers are complete: what is decided on first.
 */
inline choose() {
    choice = 0; second = 0; tried = 0; current = 0;
    f = 0;
    do
    :: f < FILES ->
        if
        :: IS_READ(f) && attempt[f] > current -> current = attempt[f]
        :: else -> skip
        fi;
        s = 0;
        do
        :: s < SLOTS ->
            n = name[AT(f, s)];
            if
            :: IS_READ(f) && n != 0 ->
                if
                :: ATTEMPT(n) > current -> current = ATTEMPT(n)
                :: else -> skip
                fi;
                if
                :: f == 2 -> found0 = 0; found1 = 0
                :: f != 2 -> look(0, n, found0); look(1, n, found1)
                fi;
                if
                :: found0 != NONE && found1 != NONE ->
                    if
                    :: n > tried -> tried = n
                    :: else -> skip
                    fi;
                    if
                    :: IS_TORN -> skip
                    :: !IS_TORN && n > choice -> second = choice; choice = n
                    :: !IS_TORN && n > second && n < choice -> second = n
                    :: else -> skip
                    fi
                :: else -> skip
                fi
            :: else -> skip
            fi;
            s++
        :: else -> break
        od;
        f++
    :: else -> break
    od;
    current++
}

/* MIN of the ranks' newest steps: what some systems do. */
inline choose_minimum() {
    limit = 0; f = 0; choice = 255;
    do
    :: f < 2 ->
        limit = 0; s = 0;
        do
        :: s < SLOTS ->
            if
            :: name[AT(f, s)] > limit -> limit = name[AT(f, s)]
            :: else -> skip
            fi;
            s++
        :: else -> break
        od;
        if
        :: limit < choice -> choice = limit
        :: else -> skip
        fi;
        f++
    :: else -> break
    od
}

/* Whether file 0, which is away, may make a newer one complete than the choice. */
#ifdef BUG_ONCE
/* What cannot be loaded is left out, and nothing is decided again. */
#define DECIDED tried
#else
#define DECIDED choice
#endif
#define IS_KNOWN_NEWER(file) (watermark[file] > DECIDED)
#define HAS_NEWER(s) (name[AT(1, s)] > DECIDED)

/* T: what is newer than the choice misses no file that was deleted. */
inline check_deleted(file, other) {
    i = 0;
    do
    :: i < SLOTS -> assert(!deleted[other] || name[AT(file, i)] <= choice); i++
    :: else -> break
    od
}

/* G1 to G3, of what every rank would load. */
inline check_choice() {
    check_deleted(0, 1); check_deleted(1, 0);
    if
    :: choice == 0 -> assert(acknowledged == 0)
    :: else ->
        assert(choice >= acknowledged);
        look(2, choice, found0);
        if
        :: found0 != NONE -> skip
        :: else ->
            look(0, choice, found0); look(1, choice, found1);
            assert(found0 != NONE && found1 != NONE);
            assert(epoch_of[AT(0, found0)] == epoch_of[AT(1, found1)])
        fi
    fi
}

/* A rank begins the attempt: the base is anchored, all else of the file is void. */
inline begin(file) {
    i = 0;
    do
    :: i < SLOTS ->
        if
        :: name[AT(file, i)] == base && base != 0 ->
            use[AT(file, i)] = KEPT; verdict[AT(file, i)] = COMPLETE; named[AT(file, i)] = true
        :: else -> use[AT(file, i)] = FREE; named[AT(file, i)] = false
        fi;
        number[AT(file, i)] = 0;
        i++
    :: else -> break
    od;
    known[file] = base; watermark[file] = base; attempt[file] = current;
    deleted[file] = false; has_begun[file] = true
}

#define ALL_BEGUN (ranks == 2 -> (has_begun[0] && has_begun[1]) : has_begun[2])
#ifdef BUG_ATTEMPT
#define MAY_TRAIN(f) has_begun[f]
#else
#define MAY_TRAIN(f) (has_begun[f] && is_running)
#endif

inline clear_exchange() {
    n = 0;
    do
    :: n <= SAVES -> given[n] = 0; all_durable[n] = true; n++
    :: else -> break
    od
}

/* Whether the files of the other number of ranks may be deleted. */
#ifdef BUG_DELETE
#define MAY_DELETE is_running
#else
#define MAY_DELETE (ATTEMPT(acknowledged) == current)
#endif

inline delete(file) {
    i = 0;
    do
    :: i < SLOTS ->
        name[AT(file, i)] = 0; epoch_of[AT(file, i)] = 0; named[AT(file, i)] = false;
        torn[AT(file, i)] = false; i++
    :: else -> break
    od;
    attempt[file] = 0; watermark[file] = 0; deleted[file] = true; i = 0
}

/* What a rank may do now; else it waits. */
#define CAN_SAVE(f) (up[f] && MAY_TRAIN(f) && begun_saves[f] < SAVES)
#define CAN_POST(f) (up[f] && MAY_TRAIN(f) && posted[f] < begun_saves[f] && \
    ended[END(f, posted[f] + 1)] != RUNNING)
#define CAN_APPLY(f) (up[f] && applied[f] < posted[f] && given[applied[f] + 1] == ALL)
#define IS_UP_WORLD (ranks == 2 -> (up[0] && up[1]) : up[2])
#define IS_DOWN_WORLD (ranks == 2 -> (!up[0] && !up[1]) : !up[2])
#define IS_DONE(f) (applied[f] == SAVES)

init {
    ranks = 2;
    do
    /* A restart, when every rank is down. */
    :: atomic { IS_DOWN_WORLD && restarts <= RESTARTS ->
        if
        :: away = NONE
        :: restarts > 0 -> away = 0
        fi;
#ifdef BUG_WORLD
        /* Only the files of its own number of ranks. */
        if
        :: reads_file_2 = false
        :: reads_file_2 = true
        fi;
#endif
        d_step { choose() };
#ifdef BUG_MIN
        d_step { choose_minimum() };
#endif
        if
#ifndef BUG_AWAY
        :: away != NONE &&
                (IS_KNOWN_NEWER(1) || IS_KNOWN_NEWER(2) || DECIDED == 0 ||
                HAS_NEWER(0) || HAS_NEWER(1) || HAS_NEWER(SLOTS - 1)) ->
            /* Refused: the file may come back. */
            away = NONE
#endif
        :: else ->
            d_step { check_choice() };
            if
            :: skip
            :: second != 0 && rewinds == 0 -> rewinds = 1; choice = second; acknowledged = second
            fi;
            base = choice;
            if
            :: away == NONE -> ranks = 2; first = 0
            :: true -> ranks = 1; first = 2
            fi;
            epoch++; is_running = false;
            d_step { clear_exchange() };
            f = first;
            do
            :: f < first + ranks -> up[f] = true; f++
            :: else -> break
            od
        fi;
        restarts++; tried = 0; f = 0; s = 0; n = 0; i = 0
      }
    /* Beginning. */
    :: atomic { ranks == 2 && up[0] && !has_begun[0] -> d_step { begin(0); i = 0 } }
    :: atomic { ranks == 2 && up[1] && !has_begun[1] -> d_step { begin(1); i = 0 } }
    :: atomic { ranks == 1 && up[2] && !has_begun[2] -> d_step { begin(2); i = 0 } }
    :: atomic { !is_running && IS_UP_WORLD && ALL_BEGUN -> is_running = true }
    /* The files of the other number of ranks are deleted. */
    :: atomic { MAY_DELETE && ranks == 1 && attempt[0] != 0 && away != 0 -> d_step { delete(0) } }
    :: atomic { MAY_DELETE && ranks == 1 && attempt[1] != 0 -> d_step { delete(1) } }
    :: atomic { MAY_DELETE && ranks == 2 && attempt[2] != 0 -> d_step { delete(2) } }
    /* A save: it takes a slot, or fails without one. */
    :: atomic { CAN_SAVE(0) -> f = 0; goto saving }
    :: atomic { CAN_SAVE(1) -> f = 1; goto saving }
    :: atomic { CAN_SAVE(2) -> f = 2;
saving: skip;
        d_step { find_free(f) };
        if
        :: free_slot ->
            begun_saves[f]++; step_of[f]++;
            use[AT(f, s)] = FLYING; number[AT(f, s)] = begun_saves[f];
            name[AT(f, s)] = 0; epoch_of[AT(f, s)] = 0; torn[AT(f, s)] = false;
            flying_step[AT(f, s)] = STEP(base) + step_of[f];
#ifdef BUG_STAGED
            ended[END(f, begun_saves[f])] = DURABLE
#endif
        :: !free_slot ->
            d_step {
                /* A superblock that names less frees a slot, where a verdict allows it. */
                s = NONE; write_superblock(f); find_free(f); s = 0
            };
            if
            :: free_slot -> skip
            :: !free_slot && failures == 0 ->
                failures = 1;
#ifdef BUG_SKIP
                step_of[f]++
#else
                begun_saves[f]++; step_of[f]++; ended[END(f, begun_saves[f])] = FAILED
#endif
            :: else -> skip
            fi
        fi;
        f = 0; s = 0; i = 0; best = 0; free_slot = false
      }
    /* A save under way ends. */
    :: atomic { up[0] -> f = 0; goto ending }
    :: atomic { up[1] -> f = 1; goto ending }
    :: atomic { up[2] -> f = 2;
ending: skip;
        if
        :: use[AT(f, 0)] == FLYING -> s = 0
        :: use[AT(f, 1)] == FLYING -> s = 1
#if SLOTS > 2
        :: use[AT(f, 2)] == FLYING -> s = 2
#endif
        :: else -> s = NONE
        fi;
        if
        :: s == NONE -> skip
        :: s != NONE ->
            d_step {
                name[AT(f, s)] = NAME(current, flying_step[AT(f, s)]);
                epoch_of[AT(f, s)] = epoch; use[AT(f, s)] = KEPT; verdict[AT(f, s)] = UNDECIDED;
                flying_step[AT(f, s)] = 0;
                ended[END(f, number[AT(f, s)])] = DURABLE;
                check_name(f, s);
                write_superblock(f)
            }
        :: s != NONE && failures == 0 ->
            failures = 1;
            use[AT(f, s)] = FREE; ended[END(f, number[AT(f, s)])] = FAILED;
            number[AT(f, s)] = 0; flying_step[AT(f, s)] = 0
        fi;
        f = 0; s = 0; i = 0; best = 0
      }
    /* The exchange. */
    :: atomic { CAN_POST(0) -> f = 0; goto posting }
    :: atomic { CAN_POST(1) -> f = 1; goto posting }
    :: atomic { CAN_POST(2) -> f = 2;
posting: skip;
        posted[f]++;
        given[posted[f]] = given[posted[f]] | BIT(f);
        all_durable[posted[f]] = all_durable[posted[f]] &&
            ended[END(f, posted[f])] == DURABLE;
        f = 0
      }
    :: atomic { CAN_APPLY(0) -> f = 0; goto applying }
    :: atomic { CAN_APPLY(1) -> f = 1; goto applying }
    :: atomic { CAN_APPLY(2) -> f = 2;
applying: skip;
        d_step {
            applied[f]++; n = applied[f]; i = 0;
            do
            :: i < SLOTS ->
                if
                :: use[AT(f, i)] == KEPT && number[AT(f, i)] == n ->
                    if
                    :: all_durable[n] ->
                        verdict[AT(f, i)] = COMPLETE; known[f] = name[AT(f, i)];
                        if
                        :: name[AT(f, i)] > acknowledged -> acknowledged = name[AT(f, i)]
                        :: else -> skip
                        fi
                    :: else -> verdict[AT(f, i)] = VOID
                    fi
                :: else -> skip
                fi;
                i++
            :: else -> break
            od;
            n = 0; i = 0; f = 0
        }
      }
    /* A crash of one rank; the others continue, or crash too. */
    :: atomic { up[0] && crashes < RESTARTS -> f = 0; goto crashing }
    :: atomic { up[1] && crashes < RESTARTS -> f = 1; goto crashing }
    :: atomic { up[2] && crashes < RESTARTS -> f = 2;
crashing: skip;
        if
        :: IS_UP_WORLD -> crashes++
        :: else -> skip
        fi;
        crash(f); f = 0; i = 0
      }
    /* The rest of a job ends with the first rank that died. */
    :: atomic { ranks == 2 && up[0] && !up[1] -> crash(0); i = 0 }
    :: atomic { ranks == 2 && up[1] && !up[0] -> crash(1); i = 0 }
    /* D: while all ranks run, a rank has something to do, or every save has its verdict. */
    :: atomic { IS_UP_WORLD && is_running && !CAN_POST(0) && !CAN_POST(1) && !CAN_POST(2) &&
            !CAN_APPLY(0) && !CAN_APPLY(1) && !CAN_APPLY(2) ->
        d_step {
            idle = true; f = first;
            do
            :: f < first + ranks -> look_busy(f); f++
            :: else -> break
            od;
            assert(!idle || (ranks == 2 -> (IS_DONE(0) && IS_DONE(1)) : IS_DONE(2)));
            f = 0; s = 0; i = 0; best = 0; idle = false
        }
      }
    :: atomic { IS_DOWN_WORLD && restarts > RESTARTS -> break }
    od
}
