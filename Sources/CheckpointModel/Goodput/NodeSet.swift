/// Which nodes are there, and which of them the job has.
///
/// Every change takes constant time: each node is in one of three lists, and knows its place.
struct NodeSet {
    private enum State: Int { case away, idle, used }

    /// The nodes of each state.
    private var lists: [[Int32]]
    private var states: [State]
    private var places: [Int32]
    /// The run from which on a node has had the job's state.
    private var firstRun: [Int32]
    /// Runs of the job so far.
    private var runCount: Int32 = 0

    init(nodeCount: Int, areThere: Bool) {
        let state = areThere ? State.idle : .away
        // The last one of a list is taken first: so nodes are taken in their order.
        let all = (0..<Int32(nodeCount)).map { Int32(nodeCount) - 1 - $0 }
        places = all
        firstRun = [Int32](repeating: 0, count: nodeCount)
        states = [State](repeating: state, count: nodeCount)
        lists = [[], [], []]
        lists[state.rawValue] = all
    }

    var usedCount: Int { lists[State.used.rawValue].count }
    var idleCount: Int { lists[State.idle.rawValue].count }

    /// The node comes; nothing happens when it is there.
    mutating func add(_ node: Int) {
        if states[node] == .away { move(node, to: .idle) }
    }

    /// Any `count` nodes that are away come.
    mutating func addAny(_ count: Int) {
        for _ in 0..<count {
            guard let node = lists[State.away.rawValue].last else { return }
            add(Int(node))
        }
    }

    /// The node leaves.
    ///
    /// - Returns: whether the job had it, and whether that had the job's state.
    mutating func leave(_ node: Int) -> (wasUsed: Bool, heldState: Bool) {
        let wasUsed = states[node] == .used
        if states[node] != .away { move(node, to: .away) }
        return (wasUsed, wasUsed && firstRun[node] <= runCount)
    }

    /// A node that leaves, of those that are there: each is equally likely. nil when none is.
    func anyNode(_ random: inout SeededRandom) -> Int? {
        guard usedCount + idleCount > 0 else { return nil }
        let index = random.index(below: usedCount + idleCount)
        return index < usedCount
            ? Int(lists[State.used.rawValue][index])
            : Int(lists[State.idle.rawValue][index - usedCount])
    }

    /// The job takes idle nodes until it has `count`, or there are no more.
    mutating func take(upTo count: Int) {
        while usedCount < count, let node = lists[State.idle.rawValue].last {
            move(Int(node), to: .used)
            firstRun[Int(node)] = runCount + 1
        }
    }

    /// The job runs on the nodes that it has: they get its state.
    mutating func beginRun() { runCount += 1 }

    private mutating func move(_ node: Int, to state: State) {
        let old = states[node].rawValue
        let place = Int(places[node])
        let last = lists[old].removeLast()
        if Int(last) != node {
            lists[old][place] = last
            places[Int(last)] = Int32(place)
        }
        places[node] = Int32(lists[state.rawValue].count)
        lists[state.rawValue].append(Int32(node))
        states[node] = state
    }
}
