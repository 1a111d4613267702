internal import ArgumentParser
internal import CheckpointCheck
internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage

struct RescueCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "rescue",
        abstract: "Make a file load the checkpoint that you choose.",
        usage: """
            pccheck rescue FILE (--promote SLOT | --back-to SLOT | --step S | --rebuild)
                           (--output OUT | --in-place --undo UNDO | --dry-run) [--json]
            pccheck rescue DIR NEWDIR [--json]
            """,
        discussion: """
            For files that recovery cannot decide about, or decides otherwise than you would. The \
            checkpoint is verified in full first. Then new superblocks name it; checkpoints that \
            are newer are set aside: they are not loaded any more, their numbers are not used \
            again, and --promote restores one while no writer has reused its slot.

            --output writes a new file, which appears when it is complete, was checked in full, \
            and loads what was asked for; FILE is only read. --in-place changes FILE itself, and \
            writes an undo file first: pcfsck --apply-undo UNDO FILE restores it.

            Of a folder with the files of ranks, every file that can be read is copied to the \
            folder NEWDIR, which must not exist: with all of its checkpoints, blocks repaired from \
            their intact twins, and new superblocks only where none is intact. Then the command \
            shows from which step the job restarts there, and why not from a newer one. DIR is \
            only read.

            Exit status: 0 done, 4 no such intact checkpoint, or something of the folder is lost, \
            8 it failed, 16 usage, 32 cancelled.
            """)

    @Argument(
        help: "The checkpoint file, or a folder with the files of ranks.", completion: .file())
    var file: String

    @Argument(
        help: .of("newdir", "Where the files of a folder go; it must not exist."),
        completion: .directory)
    var newFolder: String?

    @Option(
        help: .of(
            "slot", "Anchor the complete checkpoint in this slot, newer than the anchored one."))
    var promote: UInt32?

    @Option(help: .of("slot", "Go back to the checkpoint in this slot, and set newer ones aside."))
    var backTo: UInt32?

    @Option(help: .of("s", "Go back to the newest checkpoint of this step."))
    var step: UInt64?

    @Flag(
        help: """
            Write all superblocks from the slot headers alone, and the identity blocks from the \
            one that fits.
            """)
    var rebuild = false

    @Option(help: .of("out", "The file to write; it must not exist."), completion: .file())
    var output: String?

    @Flag(help: "Change FILE itself; needs --undo.")
    var inPlace = false

    @Option(help: .of("undo", "Where to write the undo file."), completion: .file())
    var undo: String?

    @Flag(help: "Verify and print the plan; write nothing.")
    var dryRun = false

    @Flag(help: "Print JSON for programs.")
    var json = false

    func validate() throws {
        let goals = [promote != nil, backTo != nil, step != nil, rebuild].count { $0 }
        if newFolder != nil {
            guard goals == 0, output == nil, !inPlace, undo == nil, !dryRun else {
                throw ValidationError("DIR NEWDIR rescues all of a folder; leave the options out")
            }
            return
        }
        if goals != 1 {
            throw ValidationError("give one of --promote, --back-to, --step and --rebuild")
        }
        if dryRun {
            if inPlace || undo != nil || output != nil {
                throw ValidationError("--dry-run writes nothing; leave --output, --in-place away")
            }
            return
        }
        if (output != nil) == inPlace {
            throw ValidationError("give --output OUT, or --in-place with --undo UNDO")
        }
        if inPlace != (undo != nil) { throw ValidationError("--in-place and --undo go together") }
    }

    func execute() throws -> ExitStatus {
        if let newFolder { return try rescueFolder(to: newFolder) }
        guard !RankFolder.isFolder(file) else {
            throw CheckpointError(
                .invalidArgument,
                "\(file) is a folder: pccheck rescue \(file) NEWDIR rescues the files of all "
                    + "ranks, and the options are about one file; to go back to an older step, "
                    + "pass it to resume(step=) in the job; pcfsck --verify full \(file) shows "
                    + "what is damaged, and writes nothing")
        }
        let stamp = RepairStamp.now
        let storage = try FileStorage.opened(file, inPlace ? .write : .read)
        try checkUnused(storage)
        if inPlace { return try rescueInPlace(storage, stamp) }
        // Before anything is copied: is there such a checkpoint?
        let rescue = try plan(storage, stamp)
        guard let output else {
            return try report(rescue, RescueOutcome(kind: .dryRun))
        }
        if !json { print(rescue) }
        let copy = try RescueCopy(
            of: storage, byteCount: rescue.geometry.fileByteCount, to: output)
        let final = try plan(copy.storage, stamp)
        try final.plan.apply(to: copy.storage)
        let check = try verify(copy.storage, loads: final.target, output)
        try checkUnused(storage)
        let unreadable = try copy.publish()
        return try report(
            final,
            RescueOutcome(
                kind: .output(output), report: check, unreadableBlockCount: unreadable))
    }

    private func rescueFolder(to path: String) throws(CheckpointError) -> ExitStatus {
        guard RankFolder.isFolder(file) else {
            throw CheckpointError(
                .invalidArgument,
                "\(file) is no folder; give a file and --output OUT, or a folder and NEWDIR")
        }
        var rescue = FolderRescue(try RankFolder(path: file), to: path)
        try rescue.run()
        if json {
            Output.standard.write(FolderRescueJSON.document(rescue).bytes)
        } else {
            Output.standard.show(FolderRescueScreen(rescue).lines(width:))
        }
        return rescue.status
    }

    private func rescueInPlace(
        _ storage: FileStorage, _ stamp: RepairStamp
    ) throws(CheckpointError) -> ExitStatus {
        let locked = LockedFile(storage)
        try locked.lock()
        defer { locked.unlock() }
        let rescue = try plan(storage, stamp)
        if !json { print(rescue) }
        try rescue.plan.apply(to: storage) { () throws(CheckpointError) in
            guard let undo, let content = rescue.plan.undoFile(stamp: stamp) else { return }
            try UndoFileAccess.write(content, to: undo)
        }
        let check = try verify(storage, loads: rescue.target, file)
        return try report(
            rescue, RescueOutcome(kind: .inPlace(undo: undo ?? ""), report: check))
    }

    /// A file that is being written to changes while it is copied. Where no lock shows that, the
    /// check of the copy decides.
    private func checkUnused(_ storage: FileStorage) throws(CheckpointError) {
        guard try storage.isWriterAtWork != true else {
            throw CheckpointError(
                .locked,
                "\(file): a writer has it open; close it before the rescue, or copy a checkpoint "
                    + "out of it with pccheck keep, which a writer does not disturb")
        }
    }

    private func plan(
        _ storage: FileStorage, _ stamp: RepairStamp
    ) throws(CheckpointError) -> Rescue {
        let image = try MetadataImage.read(from: storage)
        let progress = ProgressBar("verifying \(file)", total: 0)
        defer { progress.finish() }
        do throws(CheckpointError) {
            return try Rescue(try goal(image), image: image, stamp: stamp) {
                candidate throws(CheckpointError) in
                try RepairSession.verify(candidate, in: storage, progress)
                try SlotVerifier.verifyManifest(candidate, in: storage)
            }
        } catch {
            var error = error.about(file)
            // A checkpoint that is not there ends like one that is not whole, with status 4.
            if error.code == .noCheckpoint { error.code = .corrupt }
            throw error
        }
    }

    private func goal(_ image: MetadataImage) throws(CheckpointError) -> RescueGoal {
        if let promote { return .promote(SlotIndex(rawValue: promote)) }
        if let backTo { return .backTo(SlotIndex(rawValue: backTo)) }
        guard let step else { return .rebuild }
        let decision = try SlotSelection.decide(image)
        guard let candidate = decision.candidates.first(where: { $0.step == step }) else {
            let known = decision.candidates.map { "\($0.step)" }.joined(separator: ", ")
            throw CheckpointError(
                .noCheckpoint,
                "no slot holds step \(step); there " + (known.isEmpty ? "is none" : "is \(known)"))
        }
        return .backTo(candidate.slot)
    }

    /// Checks what was written: it loads what was asked for, and every byte of that is intact.
    private func verify(
        _ storage: FileStorage, loads target: Candidate, _ path: String
    ) throws(CheckpointError) -> CheckReport {
        let report = storage.check(.full, "checking \(path)")
        guard report.resume.choice?.slot == target.slot, report.resume.isProven else {
            let found = report.resume.choice.map { "step \($0.step) in slot \($0.slot)" }
            throw CheckpointError(
                .corrupt,
                "\(path): after the rescue a resume would load \(found ?? "nothing"), expected "
                    + "step \(target.step) in slot \(target.slot)"
                    + (undo.map { "; pcfsck --apply-undo \($0) \(path) undoes it" }
                        ?? "; nothing was published"))
        }
        return report
    }

    // MARK: What is printed

    private func print(_ rescue: Rescue) {
        RescueScreen(rescue, file).plan.forEach(Output.standard.line)
    }

    private func report(
        _ rescue: Rescue, _ outcome: RescueOutcome
    ) throws(CheckpointError) -> ExitStatus {
        if json {
            Output.standard.write(RescueJSON.document(file, rescue, outcome).bytes)
        } else {
            if case .dryRun = outcome.kind { print(rescue) }
            RescueScreen(rescue, file).result(outcome).forEach(Output.standard.line)
        }
        return .clean
    }
}

/// How a rescue ended.
struct RescueOutcome {
    enum Kind {
        case dryRun
        case output(String)
        case inPlace(undo: String)
    }

    let kind: Kind
    /// The full check of what was written; nil when nothing was.
    var report: CheckReport?
    /// Blocks of 4096 bytes that the medium did not return, and that are zero in the copy.
    var unreadableBlockCount = 0
}
