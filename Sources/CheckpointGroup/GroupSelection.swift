internal import CheckpointFormat
internal import CheckpointRecovery

/// Reports of files in, one decision out: GROUP.md, "Restart", step 2.
///
/// The order of the reports counts only between two that claim the same: a restart gives them in
/// the order of the ranks.
public enum GroupSelection {
    /// - Parameter rejected: what was tried, by earlier decisions from the same reports. Without
    ///   it, another one may be what a file needs that is away: the next of a list is no decision.
    public static func decide(
        _ reports: [GroupReport], rejected: [GroupDecision.Rejection] = []
    ) -> GroupDecision {
        var selection = Selection(reports, rejected)
        selection.chooseRun()
        selection.checkNames()
        selection.sortIntoWorlds()
        return selection.decision()
    }
}

private struct Selection {
    typealias Decision = GroupDecision

    private struct Key: Hashable {
        let name: GroupCheckpointName
        let worldSize: UInt32
    }

    /// The places of one world: a rank has a file, or a reason why not.
    private struct Ranks {
        var files: [UInt32: GroupFileReport] = [:]
        var absences: [UInt32: Decision.Absence] = [:]
    }

    private var files: [GroupFileReport] = []
    private var failures: [(path: String, message: String)] = []
    private var problems: [Decision.Problem] = []
    private var run: Identifier128?
    private var worlds: [UInt32: Ranks] = [:]
    private let rejected: [GroupCheckpointName: Decision.Rejection.Cause]

    init(_ reports: [GroupReport], _ rejected: [Decision.Rejection]) {
        self.rejected = Dictionary(rejected.map { ($0.name, $0.cause) }) { first, _ in first }
        var seen: Set<GroupReport> = []
        for report in reports where seen.insert(report).inserted {
            switch report {
            case .file(let file): files.append(file)
            case .failure(let path, let message):
                failures.append((path, message))
                problems.append(.init(kind: .unusable, path: path, message: message))
            }
        }
    }

    /// The run is that of most files; the others are refused.
    mutating func chooseRun() {
        var counts: [Identifier128: Int] = [:]
        var firstPath: [Identifier128: String] = [:]
        for file in files where file.runUUID != .zero {
            counts[file.runUUID, default: 0] += 1
            firstPath[file.runUUID] = min(firstPath[file.runUUID] ?? file.path, file.path)
        }
        let best = counts.max {
            ($0.value, $1.key.description) < ($1.value, $0.key.description)
        }
        run = best?.key
        for file in files where file.runUUID != run {
            if file.runUUID == .zero {
                add(.noGroup, file, "it is a file without a group: its run UUID is zero")
            } else if let run, let path = firstPath[run] {
                add(
                    .otherRun, file,
                    "it is of run \(file.runUUID), and \(path) of run \(run); "
                        + "give each run a folder of its own")
            }
        }
        files.removeAll { $0.runUUID != run }
    }

    /// The identity block decides; a name that claims something else is reported.
    mutating func checkNames() {
        for file in files {
            guard let name = RankFileName(path: file.path),
                name != RankFileName(rank: file.rank, worldSize: file.worldSize)
            else { continue }
            add(
                .otherName, file,
                "it is of rank \(file.rank) of \(file.worldSize), and its name of rank "
                    + "\(name.rank) of \(name.worldSize); give it the name of its own rank")
        }
    }

    mutating func sortIntoWorlds() {
        for file in files { place(file) }
        for (path, message) in failures {
            guard let name = RankFileName(path: path) else { continue }
            var ranks = worlds[name.worldSize] ?? Ranks()
            if ranks.files[name.rank] == nil, ranks.absences[name.rank] == nil {
                ranks.absences[name.rank] = .unusable(path: path, message: message)
            }
            worlds[name.worldSize] = ranks
        }
    }

    private mutating func place(_ file: GroupFileReport) {
        if case .twoFiles(let path, _) = worlds[file.worldSize]?.absences[file.rank] {
            return addTwoFiles(file, path)
        }
        guard let other = worlds[file.worldSize]?.files[file.rank] else {
            worlds[file.worldSize, default: Ranks()].files[file.rank] = file
            return
        }
        if file.isCopy(of: other) { return }
        if file.path == other.path, file.fileUUID == other.fileUUID {
            // Two ranks looked at it at different times.
            if file.generation > other.generation {
                worlds[file.worldSize]?.files[file.rank] = file
            }
            return
        }
        addTwoFiles(file, other.path)
        addTwoFiles(other, file.path)
        worlds[file.worldSize]?.files[file.rank] = nil
        worlds[file.worldSize]?.absences[file.rank] = .twoFiles(
            min(file.path, other.path), max(file.path, other.path))
    }

    private mutating func addTwoFiles(_ file: GroupFileReport, _ path: String) {
        add(
            .twoFiles, file,
            "it is of rank \(file.rank) of \(file.worldSize), as is \(path); keep the one that "
                + "the rank wrote last, and move the other one away")
    }

    private mutating func add(
        _ kind: Decision.Problem.Kind, _ file: GroupFileReport, _ message: String
    ) {
        problems.append(.init(kind: kind, path: file.path, message: message))
    }
}

// MARK: The decision

extension Selection {
    mutating func decision() -> GroupDecision {
        let worlds = worlds.sorted { $0.key > $1.key }.map { size, ranks in
            Decision.World(
                size: size,
                files: ranks.files.sorted { $0.key < $1.key }.map(\.value),
                missing: Self.missing(size, ranks))
        }
        let (checkpoints, omittedCount) = checkpoints(worlds)
        refuseTwoWorlds(checkpoints)
        let used = worlds.flatMap(\.files)
        return GroupDecision(
            run: run, nextAttempt: Self.nextAttempt(used),
            watermark: used.compactMap(\.watermark).max(), checkpoints: checkpoints,
            omittedCount: omittedCount, worlds: worlds,
            problems: problems.sorted {
                ($0.path, $0.kind.rawValue, $0.message) < ($1.path, $1.kind.rawValue, $1.message)
            })
    }

    private static func nextAttempt(_ files: [GroupFileReport]) -> UInt64? {
        let highest =
            files.lazy.flatMap { file in
                [file.attempt, file.watermark?.attempt ?? 0]
                    + file.slots.map { $0.name?.attempt ?? 0 }
            }.max() ?? 0
        return highest < Limits.attemptMaximum ? highest + 1 : nil
    }

    /// Ranks of a world without a file that can be used.
    private static func missing(_ size: UInt32, _ ranks: Ranks) -> [Decision.Missing] {
        var list = MissingList()
        let known = (Array(ranks.files.keys) + Array(ranks.absences.keys)).sorted()
        var next: UInt32 = 0
        for rank in known {
            list.add(next, before: rank, .noFile)
            if let absence = ranks.absences[rank] { list.add(rank...rank, absence) }
            next = rank + 1
        }
        list.add(next, before: size, .noFile)
        return list.runs
    }

    private func checkpoints(
        _ worlds: [Decision.World]
    ) -> (list: [Decision.Checkpoint], omittedCount: Int) {
        var parts: [Key: [Decision.Part]] = [:]
        for world in worlds {
            for file in world.files {
                for (name, slot) in file.candidates {
                    parts[Key(name: name, worldSize: world.size), default: []].append(
                        Decision.Part(
                            rank: file.rank, path: file.path, slot: slot.slot,
                            sequence: slot.sequence ?? .none, reason: slot.reason))
                }
            }
        }
        let keys = parts.keys.sorted { ($1.name, $1.worldSize) < ($0.name, $0.worldSize) }
        let worldBySize = Dictionary(uniqueKeysWithValues: worlds.map { ($0.size, $0) })
        var list: [Decision.Checkpoint] = []
        var incompleteCount = 0
        for key in keys {
            guard let found = parts[key], let world = worldBySize[key.worldSize] else { continue }
            let missing: [Decision.Missing]
            if UInt64(found.count) == UInt64(world.size) {
                missing = rejected[key.name].map { Self.rejected($0, found, world) } ?? []
            } else {
                incompleteCount += 1
                if incompleteCount > Decision.incompleteCountMaximum { continue }
                missing = Self.missing(key.name, found, world)
            }
            list.append(
                Decision.Checkpoint(
                    name: key.name, worldSize: key.worldSize, parts: found, missing: missing))
        }
        return (list, max(0, incompleteCount - Decision.incompleteCountMaximum))
    }

    /// Every rank of `world`, each of which has one of `parts`. A part that no superblock names was
    /// never durable, whichever part was damaged.
    private static func rejected(
        _ cause: Decision.Rejection.Cause, _ parts: [Decision.Part], _ world: Decision.World
    ) -> [Decision.Missing] {
        var list = MissingList()
        for (part, file) in zip(parts, world.files) {
            let isNamed = file.slots.contains { $0.slot == part.slot && $0.isNamed }
            list.add(
                part.rank...part.rank, .rejected(cause, isLoss: cause == .damaged && isNamed))
        }
        return list.runs
    }

    /// Ranks of `world` that are not among `parts`: those without a file, and the others.
    private static func missing(
        _ name: GroupCheckpointName, _ parts: [Decision.Part], _ world: Decision.World
    ) -> [Decision.Missing] {
        var runs = world.missing
        var parts = parts[...]
        for file in world.files {
            if parts.first?.rank == file.rank {
                parts.removeFirst()
            } else {
                runs.append(
                    Decision.Missing(ranks: file.rank...file.rank, reason: file.absence(name)))
            }
        }
        var list = MissingList()
        for run in runs.sorted(by: { $0.ranks.lowerBound < $1.ranks.lowerBound }) {
            list.add(run.ranks, run.reason)
        }
        return list.runs
    }

    /// An attempt has one number of ranks; checkpoints of two are two histories under one name.
    private mutating func refuseTwoWorlds(_ checkpoints: [Decision.Checkpoint]) {
        var first: [UInt64: Decision.Checkpoint] = [:]
        var reported: Set<Key> = []
        for checkpoint in checkpoints {
            let attempt = checkpoint.name.attempt
            let other = first[attempt] ?? checkpoint
            first[attempt] = other
            let key = Key(
                name: GroupCheckpointName(attempt: attempt, step: 0),
                worldSize: checkpoint.worldSize)
            guard other.worldSize != checkpoint.worldSize, let part = checkpoint.parts.first,
                let otherPart = other.parts.first, reported.insert(key).inserted
            else { continue }
            problems.append(
                .init(
                    kind: .twoWorlds, path: part.path,
                    message: "attempt \(attempt) has checkpoints of \(checkpoint.worldSize) ranks "
                        + "here, and of \(other.worldSize) ranks in \(otherPart.path); two "
                        + "histories have one name: keep the files of one of them"))
        }
    }
}

/// Runs of ranks for one reason, in ascending order.
private struct MissingList {
    private(set) var runs: [GroupDecision.Missing] = []

    mutating func add(
        _ first: UInt32, before end: UInt32, _ reason: GroupDecision.Absence
    ) {
        if first < end { add(first...(end - 1), reason) }
    }

    mutating func add(_ ranks: ClosedRange<UInt32>, _ reason: GroupDecision.Absence) {
        if let last = runs.last, last.reason == reason,
            UInt64(last.ranks.upperBound) + 1 == UInt64(ranks.lowerBound)
        {
            runs[runs.count - 1] = .init(
                ranks: last.ranks.lowerBound...ranks.upperBound, reason: reason)
        } else {
            runs.append(.init(ranks: ranks, reason: reason))
        }
    }
}

extension GroupFileReport {
    /// Why the file has no part in `name`.
    fileprivate func absence(_ name: GroupCheckpointName) -> GroupDecision.Absence {
        if let slot = slots.first(where: { $0.name == name }) {
            return .incomplete(slot.reason, isLoss: slot.isDamaged)
        }
        // Nothing that this rank acknowledged can be in them otherwise.
        let damaged = mayHoldDurable ? slots.count { $0.isDamaged } : 0
        return .notInFile(damagedSlotCount: damaged)
    }
}
