/// The rarer checkpoints on storage below those in the memory of other nodes: which work is lost
/// when memory does not hold the state any more.
struct StorageTier {
    /// A part of the trace, and the node-seconds of work in it.
    struct Stretch {
        var startSeconds: Double
        var endSeconds: Double
        var work: Double
    }

    private let memory: Policy.PeerMemory
    /// Those since the last durable checkpoint on storage, in order; the first one may begin
    /// before it.
    private var stretches: [Stretch] = []
    /// Training before the first of them, and until now. What was lost is not in it.
    private var startSeconds = 0.0
    private var nowSeconds = 0.0

    init(_ memory: Policy.PeerMemory) { self.memory = memory }

    /// Counts a stretch that survived.
    mutating func add(_ stretch: Stretch) {
        let length = stretch.endSeconds - stretch.startSeconds
        guard length > 0 else { return }
        stretches.append(stretch)
        nowSeconds += length
        // What ends before the last durable checkpoint is never lost.
        let durable = durableSeconds
        var count = 0
        while count < stretches.count {
            let end = startSeconds + stretches[count].endSeconds - stretches[count].startSeconds
            guard end <= durable else { break }
            startSeconds = end
            count += 1
        }
        stretches.removeFirst(count)
    }

    /// Falls back to storage.
    ///
    /// - Returns: the stretches that are lost.
    mutating func fallBack() -> [Stretch] {
        let durable = durableSeconds
        var lost = stretches
        stretches = []
        if durable > startSeconds, let first = lost.first {
            let length = first.endSeconds - first.startSeconds
            let part = min(1, (durable - startSeconds) / length)
            let middle = first.startSeconds + part * length
            stretches = [first]
            stretches[0].endSeconds = middle
            stretches[0].work = part * first.work
            lost[0].startSeconds = middle
            lost[0].work = (1 - part) * first.work
        }
        nowSeconds = durable
        return lost
    }

    /// When the last checkpoint that is durable now was taken.
    private var durableSeconds: Double {
        let ready = nowSeconds - memory.storageCommitSeconds
        let interval = memory.storageIntervalSeconds
        return max(startSeconds, (ready / interval).rounded(.down) * interval)
    }
}
