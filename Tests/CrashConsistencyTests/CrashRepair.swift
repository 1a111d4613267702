import CheckpointCheck
import CheckpointFormat
import CheckpointRecovery
import CheckpointSimulation
import StorageFaults

/// `pcfsck -y` on what a crash left: it keeps every promise, names only what is whole, and leaves
/// nothing that it could do.
enum CrashRepair {
    private static let stamp = RepairStamp(time: 1, bootID: .zero, processID: 1)

    static func problem(
        _ contents: [UInt8], _ promise: Promise, _ payloads: [UInt64: Set<Digest>]
    ) -> String? {
        let storage = MemoryStorage(contents: contents)
        do throws(CheckpointError) {
            try plan(storage).apply(to: storage)
        } catch {
            return "pcfsck -y failed: \(error)"
        }
        if let problem = RecoveryMemo().problem(storage, promise, payloads) {
            return "after pcfsck -y, \(problem)"
        }
        let again = plan(storage)
        return again.isEmpty ? nil : "a second pcfsck -y would: \(again.repairs)"
    }

    private static func plan(_ storage: MemoryStorage) -> RepairPlan {
        let report = FileChecker(storage: storage).run(
            options: CheckOptions(depth: .metadata, workerCount: 1))
        return report.fullPlan(stamp: stamp) { candidate throws(CheckpointError) in
            try SlotVerifier.verify(candidate, in: storage, workerCount: 1)
        }
    }
}
