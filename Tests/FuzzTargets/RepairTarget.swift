import CheckpointCheck
import CheckpointFormat
import CheckpointRecovery
import StorageFaults

/// pcfsck says what a resume then does, and its repairs, of both kinds, make nothing worse and
/// leave nothing to repair.
enum RepairTarget {
    private static let options = CheckOptions(depth: .full, workerCount: 1)

    static func problem(in image: [UInt8]) -> String? {
        let storage = MemoryStorage(contents: image)
        let before = FileChecker(storage: storage).run(options: options)
        let outcome = Outcome(storage)
        if let problem = verdictProblem(before, outcome) { return problem }
        let loadable = Outcome.loadableSlots(storage)
        if let problem = fullRepairProblem(image, outcome, loadable) { return problem }
        if before.plan.isEmpty { return nil }
        do throws(CheckpointError) {
            try before.plan.apply(to: storage)
        } catch {
            return "the repair failed: \(error)"
        }
        let after = FileChecker(storage: storage).run(options: options)
        if !after.plan.isEmpty { return "after the repair, another one is planned" }
        if after.resume != before.resume { return "the repair changed the verdict" }
        let loaded = Outcome(storage)
        if loaded.candidate != outcome.candidate || loaded.digest != outcome.digest {
            return "the repair changed what loads"
        }
        return Outcome.loadableSlots(storage).isSuperset(of: loadable)
            ? nil : "the repair made a checkpoint unloadable"
    }

    private static func verdictProblem(_ report: CheckReport, _ outcome: Outcome) -> String? {
        let choice = report.resume.choice
        guard choice?.slot == outcome.candidate?.slot,
            choice?.sequence == outcome.candidate?.sequence,
            choice?.kind == outcome.candidate?.kind
        else {
            return "pcfsck says that \(choice?.sequence ?? .none) would load, and "
                + "\(outcome.candidate?.sequence ?? .none) does"
        }
        // A file without a checkpoint yet is sound, and nothing loads from it.
        let hadOne = report.decision?.superblock?.anchor != nil
        if outcome.candidate == nil, hadOne, report.isClean {
            return "a durable checkpoint is lost, and pcfsck is silent"
        }
        return nil
    }

    /// `-y` without an answer to any question, and its undo.
    private static func fullRepairProblem(
        _ image: [UInt8], _ outcome: Outcome, _ loadable: Set<SlotIndex>
    ) -> String? {
        let storage = MemoryStorage(contents: image)
        let plan = fullPlan(storage)
        guard let undo = plan.undoFile(stamp: stamp) else { return nil }
        do throws(CheckpointError) {
            try plan.apply(to: storage)
        } catch {
            return "the full repair failed: \(error)"
        }
        let again = fullPlan(storage)
        if !again.isEmpty {
            return "after the full repair, another one is planned: \(again.repairs)"
        }
        let loaded = Outcome(storage)
        if loaded.candidate?.slot != outcome.candidate?.slot
            || loaded.candidate?.sequence != outcome.candidate?.sequence
            || loaded.digest != outcome.digest
        {
            return "the full repair changed what loads"
        }
        if !Outcome.loadableSlots(storage).isSuperset(of: loadable) {
            return "the full repair made a checkpoint unloadable"
        }
        do {
            _ = try Undoing(UndoFile(decoding: undo.encoded())).apply(to: storage)
        } catch {
            return "the undo failed: \(error)"
        }
        return storage.contents == image ? nil : "the undo did not bring every byte back"
    }

    private static let stamp = RepairStamp(time: 1, bootID: .zero, processID: 1)

    private static func fullPlan(_ storage: MemoryStorage) -> RepairPlan {
        FileChecker(storage: storage).run(options: options).fullPlan(stamp: stamp) {
            candidate throws(CheckpointError) in
            try SlotVerifier.verify(candidate, in: storage, workerCount: 1)
        }
    }
}
