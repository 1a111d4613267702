/// Every problem that pcfsck can find; spec/PROBLEMS.md is this list as a table.
public enum ProblemCatalogue {
    public static let all: [Problem] =
        identity + superblock + header + table + payload + cross + group

    /// The problem called `id`.
    public static func problem(_ id: String) -> Problem? { byID[id] }

    private static let byID = Dictionary(
        all.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })

    /// One list for people and machines: spec/PROBLEMS.md holds exactly these rows.
    public static var markdownTable: [String] {
        [
            "| ID | severity | title | what it means | what to do | fix |",
            "|---|---|---|---|---|---|",
        ]
            + all.map {
                "| \($0.id) | \($0.severity.rawValue) | \($0.title) | \($0.explanation) | "
                    + "\($0.advice) | \($0.fix.map { "\($0)" } ?? "none") |"
            }
    }

    // MARK: Identity

    static let identityDamaged = Problem(
        "PCK-I001", .error, "identity copy damaged",
        "One of the two copies of the identity block does not match its checksum or its rules; the "
            + "other copy is intact, so nothing is lost yet.",
        "Run pcfsck -p to rewrite it.", .safe, "rewrite from the other copy")
    static let identityCopiesDiffer = Problem(
        "PCK-I002", .error, "identity copies differ",
        "Both copies of the identity block are intact, but they describe different files.",
        "The head's copy is used. Compare the file with its source; two files were mixed.",
        .asked, "rewrite the other copy from the head's")
    static let identityLost = Problem(
        "PCK-I003", .error, "no identity block usable",
        "Neither copy can be used, so nothing records where anything is in the file.",
        "Restore the file from a copy.")
    static let wrongMagic = Problem(
        "PCK-I004", .error, "not a PCcheck file",
        "Neither end of the file begins with the magic of an identity block.",
        "Check the path.")
    static let textModeDamage = Problem(
        "PCK-I005", .error, "damaged by a text-mode transfer",
        "The magic was changed the way a transfer changes line ends; so was everything else.",
        "Copy the file again in binary mode.")
    static let newerVersion = Problem(
        "PCK-I006", .error, "made by a newer PCcheck",
        "The major version of the format is one that this program does not know.",
        "Use a newer PCcheck.")
    static let unknownIncompatible = Problem(
        "PCK-I007", .error, "unknown incompatible feature",
        "The file uses a feature without which it cannot be understood.",
        "Use a newer PCcheck.")
    static let truncated = Problem(
        "PCK-I008", .error, "file truncated",
        "The file ends before the data of its last slot does, so checkpoints may be missing.",
        "Copy the file again; pcinspect shows what is left.")
    static let unknownReadOnly = Problem(
        "PCK-I009", .warning, "unknown read-only feature",
        "The file uses a feature that this program may read past but not write to.",
        "Use a newer PCcheck to write to it. pcfsck changes nothing.")
    static let unknownCompatible = Problem(
        "PCK-I010", .warning, "unknown compatible feature",
        "The file uses a feature that this program does not know and need not know.",
        "Nothing. pcfsck changes nothing in such a file.")
    static let fileTooLong = Problem(
        "PCK-I011", .warning, "bytes after the end",
        "The file is longer than its identity block records; the rest belongs to nothing.",
        "Find out who appended to the file. It does not touch the checkpoints.")
    static let identityUnreadable = Problem(
        "PCK-I012", .error, "identity copy unreadable",
        "The medium did not return one of the two copies of the identity block.",
        "Copy the file to another medium while the other copy can be read.")

    static let endLost = Problem(
        "PCK-I013", .error, "end of the file missing",
        "The file ends behind the data of its last slot: every checkpoint is there, but copies of "
            + "superblocks or of the identity block are not.",
        "Run pcfsck -y to restore the end. Until then the file can be read, not written to.",
        .full, "append the missing blocks, from the other copies")

    private static let identity = [
        identityDamaged, identityCopiesDiffer, identityLost, wrongMagic, textModeDamage,
        newerVersion, unknownIncompatible, truncated, unknownReadOnly, unknownCompatible,
        fileTooLong, identityUnreadable, endLost,
    ]

    // MARK: Superblock

    static let superblockDamaged = Problem(
        "PCK-B001", .error, "superblock copy damaged",
        "One of the two copies of a superblock does not match its checksum or its rules; its twin "
            + "at the other end of the file is intact.",
        "Run pcfsck -p to rewrite it.", .safe, "rewrite from its twin")
    static let superblockPairDamaged = Problem(
        "PCK-B002", .error, "both copies of a superblock damaged",
        "Neither copy of one parity is intact. A crash while a superblock is written leaves this, "
            + "and then it is a warning; after a clean close it is damage.",
        "Recovery uses the previous superblock and the slot headers. Open the file for writing "
            + "once, and the next commit rewrites both copies.",
        .full, "new superblocks that name what is intact")
    static let superblocksLost = Problem(
        "PCK-B003", .error, "no superblock left",
        "None of the four copies is intact. Complete slots can still be loaded once every chunk of "
            + "them is verified, because slot headers carry the identity.",
        "Open the file for writing: it anchors the newest checkpoint that verifies.",
        .full, "new superblocks that name what is intact")
    static let superblockOutdated = Problem(
        "PCK-B004", .info, "superblock copy not updated",
        "A crash came between the writes of the two copies, so that one is of an older "
            + "generation than its twin.",
        "Nothing: the next commits rewrite both.",
        .full, "rewrite from its twin")
    static let fork = Problem(
        "PCK-B005", .error, "two writers",
        "Two intact copies of one generation differ: two writers were at work.",
        "Extract the checkpoint you want with pcextract and start a new file. Give each rank its "
            + "own path.",
        .asked, "new superblocks that continue from the one that is followed")
    static let anchorMismatch = Problem(
        "PCK-B006", .error, "anchored slot does not match",
        "The newest superblock names a slot whose header is not the one it was written for.",
        "Recovery continues with the next candidate that verifies.",
        .full, "new superblocks that name what is intact")
    static let superblockMisplaced = Problem(
        "PCK-B007", .error, "superblock of another place",
        "A superblock copy belongs to another file or to another place in this one; its twin is "
            + "intact.",
        "Run pcfsck -p to rewrite it. Ask what wrote there.", .safe, "rewrite from its twin")
    static let superblockUnreadable = Problem(
        "PCK-B008", .error, "superblock copy unreadable",
        "The medium did not return a superblock copy, or the file ends before it.",
        "Copy the file to another medium while its twin can be read.")
    static let parentMismatch = Problem(
        "PCK-B009", .error, "superblock history damaged",
        "The newest superblock was not written after the previous one that is in the file: two "
            + "writers took turns, or a write was lost.",
        "Verify the checkpoint with --verify full, extract it, and start a new file.",
        .asked, "new superblocks that continue from the newest")
    static let notClosed = Problem(
        "PCK-B010", .info, "not closed",
        "The last writer did not close the file: it crashed, was killed, or is still at work.",
        "Nothing: opening for writing recovers.")

    private static let superblock = [
        superblockDamaged, superblockPairDamaged, superblocksLost, superblockOutdated, fork,
        anchorMismatch, superblockMisplaced, superblockUnreadable, parentMismatch, notClosed,
    ]

    // MARK: Slot headers

    static let slotWriting = Problem(
        "PCK-S001", .info, "torn checkpoint",
        "A checkpoint began in this slot and was not completed. Its slot is free.",
        "Nothing: this is what a crash leaves.")
    static let slotUnanchored = Problem(
        "PCK-S002", .info, "complete but not anchored",
        "The crash came between the two barriers: the checkpoint is complete, but no superblock "
            + "names it.",
        "Nothing: a resume verifies every chunk of it, and uses it when it is intact.",
        .full, "anchor it when every chunk verifies")
    static let headerDamaged = Problem(
        "PCK-S003", .error, "slot header damaged",
        "The header does not match its checksum or its rules. In a slot that no superblock keeps, "
            + "a crash explains it.",
        "If the slot was kept, its checkpoint is lost; recovery uses the next one.",
        .full, "write an empty header when nothing keeps the slot")
    static let headerBlank = Problem(
        "PCK-S004", .error, "slot header missing",
        "The header block is all zero, though creation writes a header into every slot.",
        "If the slot was kept, its checkpoint is lost; recovery uses the next one.",
        .full, "write an empty header when nothing keeps the slot")
    static let headerForeign = Problem(
        "PCK-S005", .error, "slot header of another file",
        "The header is intact, but belongs to a file with another UUID.",
        "Ask what wrote there. If the slot was kept, its checkpoint is lost.",
        .full, "write an empty header when nothing keeps the slot")
    static let headerMisdirected = Problem(
        "PCK-S006", .error, "slot header of another place",
        "The header is intact, but records another place in this file.",
        "A write went astray: check the device. If the slot was kept, its checkpoint is lost.",
        .full, "write an empty header when nothing keeps the slot")
    static let headerUnreadable = Problem(
        "PCK-S007", .error, "slot header unreadable",
        "The medium did not return the header, or the file ends before it.",
        "Copy the file to another medium.")
    static let headerStale = Problem(
        "PCK-S008", .error, "slot holds an older checkpoint",
        "The superblock records that this slot holds a newer checkpoint than it does: the write of "
            + "its header was lost.",
        "The medium acknowledged a write that it did not keep. Replace it.",
        .full, "new superblocks that name what is intact")
    static let slotInUse = Problem(
        "PCK-S009", .info, "slot being rewritten",
        "A writer took the slot while it was being checked.",
        "Nothing; run pcfsck again when the writer is done.")

    private static let header = [
        slotWriting, slotUnanchored, headerDamaged, headerBlank, headerForeign, headerMisdirected,
        headerUnreadable, headerStale, slotInUse,
    ]

    // MARK: Chunk tables and manifests

    static let tableDamaged = Problem(
        "PCK-T001", .error, "chunk table damaged",
        "The chunk table is not the one that the slot's header was sealed with. In a slot that no "
            + "superblock keeps, a crash explains it.",
        "If the slot was kept, its checkpoint is lost; recovery uses the next one.",
        .full, "new superblocks without it when it was kept")
    static let tableInvalid = Problem(
        "PCK-T002", .error, "chunk table invalid",
        "The chunk table matches its digest, but an entry breaks the rules of the format.",
        "A faulty program made the file. Keep it and report it.",
        .full, "new superblocks without it when it was kept")
    static let manifestDamaged = Problem(
        "PCK-T003", .error, "manifest damaged",
        "A chunk that holds the directory of tensors does not match its digest, cannot be "
            + "decompressed, or was not returned by the medium.",
        "The checkpoint cannot be loaded; recovery uses the next one. The tensors' "
            + "names and places are lost with the manifest.",
        .full, "new superblocks without it when it was kept")
    static let manifestInvalid = Problem(
        "PCK-T004", .error, "manifest invalid",
        "The directory of tensors is as it was saved, but breaks the rules of safetensors, or its "
            + "size is not the one that the slot header records.",
        "A faulty program made the file. Extract its bytes with pcextract --format raw.")

    private static let table = [tableDamaged, tableInvalid, manifestDamaged, manifestInvalid]

    // MARK: Payload

    static let chunkDamaged = Problem(
        "PCK-C001", .error, "chunk damaged",
        "The stored bytes of a chunk do not match their digest. In a slot that no superblock "
            + "keeps, a crash explains it.",
        "The checkpoint cannot be loaded; recovery uses the next one. pcextract --slot with "
            + "--salvage writes what is in intact chunks, and a map of what is not.",
        .full, "new superblocks without it when it was kept")
    static let chunkUndecodable = Problem(
        "PCK-C002", .error, "chunk cannot be decompressed",
        "The stored bytes match their digest, but are not the compressed form they should be.",
        "A faulty program made the file. Keep it and report it.",
        .full, "new superblocks without it when it was kept")
    static let chunkUnreadable = Problem(
        "PCK-C003", .error, "chunk unreadable",
        "The medium did not return the chunk, or the file ends before it.",
        "Copy the file to another medium.")
    static let logicalDigestMismatch = Problem(
        "PCK-C004", .error, "payload digest wrong",
        "Every chunk matches its digest, but together they are not the payload that was saved.",
        "A faulty program made the file. Keep it and report it.",
        .full, "new superblocks without it when it was kept")

    static let notVerified = Problem(
        "PCK-C005", .warning, "not verified: not enough memory",
        "PCcheck verifies a chunk in memory, and this process cannot allocate as much as the "
            + "file's chunk size needs. Nothing is known of this checkpoint's payload.",
        "Raise the limit (ulimit -v), or check the file on a machine with more memory.")

    private static let payload = [
        chunkDamaged, chunkUndecodable, chunkUnreadable, logicalDigestMismatch, notVerified,
    ]

    // MARK: Cross checks

    static let nothingLoads = Problem(
        "PCK-X001", .error, "no checkpoint left",
        "The file held a durable checkpoint, and none can be loaded now.",
        "Restore the file from a copy, or take what is left with pcextract --slot and --salvage.")
    static let retainedLost = Problem(
        "PCK-X002", .error, "retained checkpoint lost",
        "The newest superblock keeps a checkpoint that is not in its slot.",
        "The fallback is gone. Save a new checkpoint; check the device.",
        .full, "new superblocks without it")
    static let sequenceRepeated = Problem(
        "PCK-X003", .error, "sequence given twice",
        "Two slots hold different checkpoints with the same sequence: two writers were at work.",
        "Extract the one you want with pcextract and start a new file.",
        .asked, "write an empty header into the slot that nothing keeps")
    static let stepDiffers = Problem(
        "PCK-X004", .error, "superblock and slot disagree",
        "The newest superblock and the header that it anchors record different steps.",
        "A faulty program made the file. Keep it and report it.",
        .full, "new superblocks with the slot's step")
    static let reservedBlockUsed = Problem(
        "PCK-X005", .warning, "reserved block in use",
        "The reserved block behind the head superblocks is not zero.",
        "A newer program wrote there, or a write went astray. It touches nothing durable.",
        .full, "write zeros")

    private static let cross = [
        nothingLoads, retainedLost, sequenceRepeated, stepDiffers, reservedBlockUsed,
    ]

    // MARK: Groups

    static let rankFileMissing = Problem(
        "PCK-G001", .error, "rank file missing",
        "Some ranks of a group have a file here, and others of the same number of ranks have none. "
            + "It is a warning when the restart continues from a newer checkpoint of another "
            + "number of ranks.",
        "Put the missing files into the folder. When each machine has a folder of its own, collect "
            + "the files of all of them first.")
    static let otherRun = Problem(
        "PCK-G002", .error, "file of another run",
        "The files of a folder have different run UUIDs: two jobs used one folder.",
        "Give each run a folder of its own: move the files of the other run.")
    static let otherName = Problem(
        "PCK-G003", .error, "file under another name",
        "The name of the file names another rank or number of ranks than its identity block.",
        "The identity block is right. Give the file the name of its own rank.")
    static let twoFilesOfOneRank = Problem(
        "PCK-G004", .error, "two files of one rank",
        "Two files are of the same rank of the same number of ranks, and hold different "
            + "checkpoints. Neither is used.",
        "Keep the file that the rank wrote last, and move the other one away.")
    static let groupCheckpointLost = Problem(
        "PCK-G005", .error, "group checkpoint lost",
        "This checkpoint was durable on all ranks, or may have been, and at least one rank does "
            + "not have its part now.",
        "Bring back the file of the rank that the check names, or repair it. A restart continues "
            + "from an older checkpoint when one is complete.")
    static let newestIncomplete = Problem(
        "PCK-G006", .info, "newest checkpoint not complete",
        "Some ranks have a checkpoint that others do not have: what a crash leaves while the ranks "
            + "save.",
        "Nothing: a restart continues from the newest checkpoint that every rank has.")
    static let rankFileUnusable = Problem(
        "PCK-G007", .error, "rank file cannot be used",
        "The file of a rank cannot be read, or is no checkpoint file.",
        "See what pcfsck reports of this file, and repair it or restore it from a copy.")
    static let twoWorlds = Problem(
        "PCK-G008", .error, "two numbers of ranks in one attempt",
        "Files of different numbers of ranks have checkpoints of the same attempt: two histories "
            + "have one name.",
        "Keep the files of one of the two, and move the others away.")
    static let noGroup = Problem(
        "PCK-G009", .error, "file without a group",
        "The file has the name of a rank's file, and belongs to no group. It is a warning while a "
            + "checkpoint of the group is complete.",
        "It is not used. Move it, so that the rank can create its file.")

    private static let group = [
        rankFileMissing, otherRun, otherName, twoFilesOfOneRank, groupCheckpointLost,
        newestIncomplete, rankFileUnusable, twoWorlds, noGroup,
    ]
}
