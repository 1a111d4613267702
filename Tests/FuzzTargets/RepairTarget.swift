import CheckpointCheck
import CheckpointFormat
import CheckpointRecovery
import StorageFaults

/// pcfsck says what a resume then does, and its repair makes nothing worse and leaves nothing to
/// repair.
enum RepairTarget {
    private static let options = CheckOptions(depth: .full, workerCount: 1)

    static func problem(in image: [UInt8]) -> String? {
        let storage = MemoryStorage(contents: image)
        let before = FileChecker(storage: storage).run(options: options)
        let outcome = Outcome(storage)
        if let problem = verdictProblem(before, outcome) { return problem }
        if before.plan.isEmpty { return nil }
        let loadable = Outcome.loadableSlots(storage)
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
}
