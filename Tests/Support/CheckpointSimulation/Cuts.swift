internal import CheckpointFormat
internal import CheckpointRecovery
internal import CheckpointStorage
internal import StorageFaults

/// What the medium may hold when a run is cut short, checked; and one of these, for the next run.
struct Cuts {
    private static let pointCount = 3
    private static let stateCountPerPoint = 2

    private let start: Simulation.Start
    private let recording: Recording
    private let payloads: [UInt64: Set<Digest>]
    private let seed: UInt64
    private var random: SplitMix64
    private let silentFaultCount: Int
    private let readsFail: Bool
    private(set) var stateCount = 0
    private(set) var violation: String?

    init(_ run: WriterRun, seed: UInt64) {
        start = run.start
        recording = run.medium.recording
        payloads = run.promises.payloads
        self.seed = seed
        readsFail = run.readsFail
        random = SplitMix64(seed: seed)
        silentFaultCount = start.silentFaultCount + recording.silentFaultCount
    }

    /// Looks at a few cuts, and returns what the last one left.
    mutating func check(retain: Int) -> Simulation.Start {
        let points = recording.crashPoints
        var next = start
        for number in 0..<Self.pointCount where violation == nil {
            let isEnd = number == Self.pointCount - 1 && Bool.random(using: &random)
            let point = isEnd ? recording.end : points.randomElement(using: &random)
            guard let point else { break }
            next = check(point, retain: retain)
        }
        return next
    }

    private mutating func check(_ point: Recording.CrashPoint, retain: Int) -> Simulation.Start {
        let states = CrashStates(recording, at: point, seed: seed)
        let durable = states.durableImage()
        let image = MemoryStorage(contents: durable)
        let acknowledged = Set(point.notes).subtracting([0]).sorted()
        let promise = promise(acknowledged, retain: retain, image)
        let fates = states.fates(limit: Self.stateCountPerPoint)
        for state in fates where violation == nil {
            let undo = states.apply(state, to: image)
            stateCount += 1
            if let problem = problem(image, promise) {
                violation =
                    "\(problem)\n  after \(point.eventCount) events: "
                    + states.describe(state)
                return start
            }
            if state != fates.last { CrashStates.revert(undo, in: image) }
        }
        var next = Simulation.Start(
            contents: image.contents, acknowledged: acknowledged,
            silentFaultCount: silentFaultCount, hasGoneBack: start.hasGoneBack)
        if isKill(point) {
            next.contents = durable
            next.cached = point.pending.map { recording.writes[$0] }
        }
        if UInt8.random(in: 0..<10, using: &random) == 0 { rot(&next) }
        return next
    }

    /// The process dies, the machine goes on. A failed flush would leave a cache that calls itself
    /// clean, which the next recording could not tell.
    private mutating func isKill(_ point: Recording.CrashPoint) -> Bool {
        let isPlain = !recording.events[..<point.eventCount].contains { event in
            switch event {
            case .flushFailed, .writeFailed: true
            default: false
            }
        }
        return UInt8.random(in: 0..<4, using: &random) == 0 && isPlain && silentFaultCount == 0
    }

    /// One byte changes.
    private mutating func rot(_ next: inout Simulation.Start) {
        let offset = Int.random(in: 0..<next.contents.count, using: &random)
        next.contents[offset] ^= 1 << UInt8.random(in: 0..<8, using: &random)
        next.silentFaultCount += 1
    }

    private func promise(
        _ acknowledged: [UInt64], retain: Int, _ image: MemoryStorage
    ) -> Promise {
        let sequence: UInt64? =
            switch silentFaultCount {
            case 0: acknowledged.last
            case 1 where retain > 1 && !hasMisdirectedWrite: acknowledged.dropLast().last
            default: nil
            }
        // Only a fault of this run can cost what its writer found.
        let loadable = recording.silentFaultCount == 0 ? start.loadable : nil
        // A failed F2 may leave a superblock in one copy only, and nobody is told of it. An opener
        // that cannot read that copy gives its generation again, in the same place.
        let generation =
            silentFaultCount == 0 && !readsFail
            ? (try? CheckpointReader(storage: image).decision.highestGeneration) : nil
        return Promise(
            sequence: SequenceNumber(rawValue: max(sequence ?? 0, loadable ?? 0)),
            generation: generation ?? Generation(rawValue: 0),
            // What loads need not be anchored, and what a caller was told must.
            isAnchored: !start.hasGoneBack && loadable ?? 0 <= sequence ?? 0)
    }

    /// It damages two places at once: the one it was meant for, and the one it hit.
    private var hasMisdirectedWrite: Bool {
        recording.silentFaultCount > recording.writes.count { $0.isLost }
    }

    private func problem(_ image: MemoryStorage, _ promise: Promise) -> String? {
        if silentFaultCount > 0 { return promise.problem(image, payloads) }
        return RecoveryMemo().problem(image, promise, payloads)
    }
}
