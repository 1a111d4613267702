import Testing

@testable import CheckpointModel

/// Every format that is read, with traces of our own.
@Suite struct TraceTests {
    static func parse(
        _ text: String, _ defaults: TraceParser.Defaults = .init()
    ) throws(TraceError) -> [Trace] {
        try TraceParser(name: "test", defaults: defaults).parse(Array(text.utf8))
    }

    /// A short text of each format.
    static let samples: [String: String] = [
        "counted": ",Time,GPUs\n0,1000.5,8\n1,1063.5,4\n2,1126.5,4\n",
        "ticks": "{\"metadata\": {\"gap_seconds\": 300, \"x\": [1]}, \"data\": [0, 3, 3, 1]}",
        "bamboo": "0,add,a\n1000,add,b\n2500,remove,a\n9000,remove,b\n",
        "faults": """
        [
          {"node_id": "a", "event_time": 0.5, "event_type": "fault_start",
           "fault_type": {"Level": "x", "list": [1, null, true, "y"]}},
          {"node_id": "b", "event_time": 0.5, "event_type": "fault_start"},
          {"node_id": "a", "event_time": 1.5, "event_type": "fault_end"}
        ]
        """,
        "site": #"""
        System,nodes,nodenum,note,Prob Started,Prob Fixed
        2,4,0,"a, b",1/1/2000 0:00,1/1/2000 1:30
        3,,7,,2/28/2000 23:00,3/1/2000 0:00
        17,,,,2/28/2000 23:00,2/28/2000 23:30
        2,4,3,"say ""x""",1/2/2000 0:00,1/2/2000 0:00

        """#,
        "own availability": "# setting: spot\n# end_seconds: 50\ntime_seconds,nodes\n0,2\n10,3\n",
        "own preemption": "time_seconds,event,node\n1,add,a\n2.5,remove,a\n",
        "own failures": "# node_count: 9\n# end_seconds: 99\n# setting: hpc\n"
            + "node,start_seconds,end_seconds\nx,1,5\ny,0.5,1e1\n",
        "json availability": "{\"kind\": \"availability\", \"samples\": [[0, 2], [5, 0], [9, 1]]}",
        "json preemption":
            "{\"kind\":\"preemption\",\"events\":[[0,\"add\",\"a\"],[4,\"remove\",\"a\"]]}",
        "json failures": "{\"kind\": \"failures\", \"setting\": \"llm\", \"node_count\": 3, "
            + "\"end_seconds\": 100, \"failures\": [[\"n\", 5, 7.5]]}",
    ]

    private func availability(_ name: String) throws -> AvailabilityTrace {
        let traces = try Self.parse(try #require(Self.samples[name]))
        #expect(traces.first?.machineNodeCount == (name == "counted" ? 4 : nil))
        guard case .availability(let trace)? = traces.first?.content else {
            throw TraceError(.malformed, "another kind")
        }
        return trace
    }

    private func failures(
        _ name: String, _ defaults: TraceParser.Defaults = .init()
    ) throws -> [FailureTrace] {
        try Self.parse(try #require(Self.samples[name]), defaults).compactMap {
            if case .failures(let trace) = $0.content { trace } else { nil }
        }
    }

    @Test func availabilityOfEachFormat() throws {
        let counted = try availability("counted")
        #expect(counted.samples.map(\.nodeCount) == [8, 4, 4])
        #expect(counted.samples.map(\.timeSeconds) == [0, 63, 126] && counted.endSeconds == 189)
        let ticks = try availability("ticks")
        #expect(ticks.samples.map(\.timeSeconds) == [0, 300, 600, 900])
        #expect(ticks.endSeconds == 1200 && ticks.largestNodeCount == 3)
        #expect(try availability("own availability").endSeconds == 50)
        #expect(try availability("json availability").endSeconds == 13)
    }

    @Test(arguments: ["bamboo", "own preemption", "json preemption"])
    func preemptionOfEachFormat(name: String) throws {
        let traces = try Self.parse(try #require(Self.samples[name]))
        guard case .preemption(let trace)? = traces.first?.content else {
            Issue.record("another kind")
            return
        }
        #expect(traces[0].setting == .spot)
        #expect(trace.events.first?.kind == .addition && trace.events.last?.kind == .removal)
        #expect(trace.endSeconds == (name == "bamboo" ? 9 : name.hasPrefix("own") ? 2.5 : 4))
    }

    @Test func failuresOfEachFormat() throws {
        let faults = try failures("faults")[0]
        #expect(faults.nodeCount == 2 && faults.endSeconds == 1.5 * 86_400)
        // b is never repaired.
        #expect(faults.failures.map(\.endSeconds) == [129_600, 129_600])
        let wider = try failures("faults", .init(nodeCount: 400, endSeconds: 200_000))[0]
        #expect(wider.nodeCount == 400 && wider.endSeconds == 200_000)
        let site = try failures("site")
        #expect(site.count == 3 && site.map(\.nodeCount) == [4, 1, 1])
        #expect(site[0].failures.map(\.startSeconds) == [0, 86_400])
        #expect(site[0].failures.map(\.endSeconds) == [5400, 86_400])
        // 2000 is a leap year: from 28 February 23:00 to 1 March 0:00 are 25 hours.
        #expect(site[1].endSeconds == 25 * 3600)
        #expect(
            try Self.parse(try #require(Self.samples["site"])).map(\.name) == [
                "test:2", "test:3", "test:17",
            ])
        let own = try failures("own failures")[0]
        #expect(own.nodeCount == 9 && own.failures.map(\.startSeconds) == [0.5, 1])
        #expect(try failures("json failures")[0].failures[0].endSeconds == 7.5)
    }

    struct Bad: Sendable, CustomTestStringConvertible {
        let text: String
        let code: TraceError.Code
        let line: Int?
        let part: String

        init(_ text: String, _ code: TraceError.Code, _ line: Int?, _ part: String) {
            self.text = text
            self.code = code
            self.line = line
            self.part = part
        }

        var testDescription: String { "\(part) in \(text.prefix(60))" }
    }

    static let counted = ",Time,GPUs\n"
    static let failuresHead = "node,start_seconds,end_seconds\n"
    static let siteHead = "System,nodes,nodenum,Prob Started,Prob Fixed\n"

    static let bad: [Bad] = [
        Bad("", .empty, nil, "found nothing"),
        Bad(" \n\n", .empty, nil, "found nothing"),
        Bad("# setting: spot\n", .empty, nil, "only comments"),
        Bad("\u{FD}7zXZ", .malformed, 1, "expected the header"),
        Bad("time,nodes\n1,2\n", .malformed, 1, "expected the header"),
        Bad("# setting: moon\ntime_seconds,nodes\n", .malformed, 1, "one of spot"),
        Bad(counted, .empty, nil, "found no sample"),
        Bad(counted + "0,10,4\n1,20,4\n", .constant, nil, "4 nodes in all 2 samples"),
        Bad(counted + "0,10,4\n", .constant, nil, "expected a change"),
        Bad(counted + "0,20,4\n1,10,3\n", .unsorted, 3, "expected times in order"),
        Bad(counted + "0,10,4\n\n1,20,-3\n", .outOfRange, 4, "\"-3\", expected a number of nodes"),
        Bad(counted + "0,-10,4\n", .outOfRange, 2, "\"-10\", expected a time"),
        Bad(counted + "0,10,4\n1,20\n", .truncated, 3, "found 2 fields, expected 3"),
        Bad(counted + "0,10,4,9\n", .malformed, 2, "found 4 fields, expected 3"),
        Bad(counted + "0,nan,4\n", .malformed, 2, "\"nan\", expected a time"),
        Bad(counted + "0,inf,4\n", .malformed, 2, "\"inf\""),
        Bad(counted + "0,0x10,4\n", .malformed, 2, "\"0x10\""),
        Bad(counted + "0,1e999,4\n", .outOfRange, 2, "\"1e999\""),
        Bad(counted + "0,1e300,4\n1,2e300,3\n", .outOfRange, 2, "1e+300"),
        Bad(counted + "0,1,99999999999999999999\n", .outOfRange, 2, "up to 1000000"),
        Bad(counted + "0,1,2.5\n", .outOfRange, 2, "whole number"),
        Bad(counted + "0,1,\"4\n", .truncated, 2, "closing quote"),
        Bad(counted + "0,,4\n", .malformed, 2, "\"\", expected a time"),
        Bad("0,add,a\n5,remove,b\n", .contradiction, 2, "a node that is not there"),
        Bad("0,add,a\n5,add,a\n", .contradiction, 2, "is there already"),
        Bad("0,add,a\n5,add,b\n", .constant, nil, "no removal"),
        Bad("5,add,a\n0,remove,a\n", .unsorted, 2, "expected times in order"),
        Bad("0,add,a\n5,leave,a\n", .malformed, 2, "expected add or remove"),
        Bad("0,add,\n", .malformed, 1, "expected that of a node"),
        Bad(failuresHead, .empty, nil, "found no failure"),
        Bad(failuresHead + "a,5,1\n", .unsorted, 2, "after 5.0 s"),
        Bad(failuresHead + "a,5\n", .truncated, 2, "found 2 fields"),
        Bad(failuresHead + "a,NaN,6\n", .malformed, 2, "\"NaN\""),
        Bad("# node_count: 1\n" + failuresHead + "a,1,2\nb,1,2\n", .outOfRange, 4, "found node 1"),
        Bad("# node_count: 1e7\n" + failuresHead, .outOfRange, 1, "up to 1000000"),
        Bad(siteHead, .empty, nil, "only the first line"),
        Bad("System,nodes\n", .malformed, 1, "no column nodenum"),
        Bad(siteHead + "2,4,0,1/1/2000 0:00\n", .truncated, 2, "found 4 fields, expected 5"),
        Bad(siteHead + "2,4,0,1/1/2000 2:00,1/1/2000 1:00\n", .unsorted, 2, "before the failure"),
        Bad(siteHead + "2,4,0,13/1/2000 2:00,1/1/2000 1:00\n", .malformed, 2, "month/day/year"),
        Bad(siteHead + "2,4,0,,1/1/2000 1:00\n", .malformed, 2, "month/day/year"),
        Bad("{", .truncated, 1, "past the end"),
        Bad("{}", .malformed, 1, "expected kind"),
        Bad("{\"metadata\": {}, \"data\": [1, 2]}", .malformed, 1, "gap_seconds"),
        Bad("{\"metadata\": {\"gap_seconds\": -3}, \"data\": [1]}", .outOfRange, 1, "\"-3\""),
        Bad("{\"metadata\": {\"gap_seconds\": 3},\n\"data\": [1, -2]}", .malformed, 2, "unsigned"),
        Bad(
            "{\"metadata\": {\"gap_seconds\": 3}, \"data\": [1, 1]}", .constant, nil,
            "all 2 samples"),
        Bad("{\"metadata\": {\"gap_seconds\": 3}, \"data\": []}", .empty, nil, "no sample"),
        Bad("{\"metadata\": {\"gap_seconds\": 3}, \"data\": [1, 2", .truncated, 1, "past the end"),
        Bad("{\"metadata\": {\"gap_seconds\": 3}, \"data\": [9999999]}", .outOfRange, 1, "9999999"),
        Bad("{\"kind\": \"moon\", \"samples\": []}", .malformed, 1, "of the kind \"moon\""),
        Bad("{\"kind\": \"failures\", \"samples\": [[1, 2]]}", .malformed, 1, "found samples"),
        Bad("{\"kind\": \"availability\",\n\"samples\": [[1]]}", .malformed, 2, "expected 2"),
        Bad("{\"kind\": \"availability\", \"samples\": [[1,{}]]}", .malformed, 1, "a number or"),
        Bad("[]", .empty, nil, "found no failure"),
        Bad("[{\"node_id\": \"a\"}]", .malformed, 1, "expected all three"),
        Bad(
            "[{\"node_id\": \"a\", \"event_time\": 1, \"event_type\": \"fault_end\"}]",
            .contradiction, 1, "did not begin"),
        Bad(
            "[\n{\"node_id\": \"a\", \"event_time\": \"x\"}]", .malformed, 2, "expected a number"),
        Bad("[[[[", .malformed, 1, "expected '{'"),
    ]

    @Test(arguments: bad) func aBadTraceIsRefused(bad: Bad) {
        do throws(TraceError) {
            _ = try Self.parse(bad.text)
            Issue.record("it was read")
        } catch {
            #expect(error.code == bad.code, "\(error.message)")
            #expect(error.line == bad.line, "\(error.message)")
            #expect(error.message.contains(bad.part), "\(error.message)")
            #expect(error.message.contains("expected"), "\(error.message)")
        }
    }

    @Test func whatXzCompressedIsNamed() {
        #expect(throws: TraceError.self) {
            try TraceParser(name: "x").parse([0xFD, 0x37, 0x7A, 0x58, 0x5A, 0, 1, 2])
        }
    }

    @Test func aFieldHasALimit() {
        let long = "node,start_seconds,end_seconds\n" + String(repeating: "a", count: 5000) + ",1,2"
        #expect { try Self.parse(long) } throws: { ($0 as? TraceError)?.code == .tooLarge }
        let wide = String(repeating: ",", count: 300)
        #expect { try Self.parse(wide) } throws: { ($0 as? TraceError)?.code == .tooLarge }
        let deep = "{\"x\": " + String(repeating: "[", count: 100_000)
        #expect { try Self.parse(deep) } throws: { ($0 as? TraceError)?.code == .malformed }
    }

    /// What is cut anywhere, and what has any byte changed, is read or refused; nothing traps.
    @Test(arguments: samples.keys.sorted()) func nothingTraps(name: String) throws {
        let bytes = Array(try #require(Self.samples[name]).utf8)
        let parser = TraceParser(name: name)
        func read(_ bytes: [UInt8]) {
            guard let traces = try? parser.parse(bytes) else { return }
            for trace in traces {
                let timeline = Timeline(trace)
                guard timeline.largestNodeCount > 0, timeline.nodeCount < 10_000 else { continue }
                let replay = try? Replay(
                    timeline, job: .elastic(minimum: 1, maximum: timeline.largestNodeCount))
                _ = try? replay?.run(ReplayTests.policy(), intervalSeconds: 100)
            }
        }
        for count in bytes.indices { read(Array(bytes[..<count])) }
        var random = SeededRandom(seed: 1)
        for _ in 0..<3000 {
            var changed = bytes
            for _ in 0...random.index(below: 3) {
                let alphabet = Array("0123456789.,-eE+\"[]{}:\n".utf8) + [0, 0xFF]
                changed[random.index(below: changed.count)] =
                    alphabet[random.index(below: alphabet.count)]
            }
            read(changed)
        }
    }

    /// A trace of the form of the one that the paper used: the start from zero, drops and rises in
    /// machines of four, and a collapse at the end.
    @Test func thePapersWayToCount() throws {
        let counts = [56, 56, 40, 48, 48, 36, 52, 44, 44, 56, 36, 48, 48, 15, 0, 0]
        let trace = try AvailabilityTrace(
            samples: counts.enumerated().map {
                AvailabilityTrace.Sample(timeSeconds: Double($0) * 63, nodeCount: $1)
            }, endSeconds: 16 * 63)
        let count = AvailabilityCount(trace, unit: 4)
        #expect(count.changesOfAnyKind == 51, "what its script calls failures")
        #expect(count.start == 14 && count.additions == 12)
        #expect(count.removals == 14 && count.finalCollapse == 11)
        // What ends a job that uses all of it: nodes leave at 4 times, and at 2 in the collapse.
        #expect(count.departureCount == 4 && count.arrivalCount == 4)
        var options = ReplayOptions()
        options.settleSeconds = 0
        let replay = try Replay(
            Timeline(trace), job: .elastic(minimum: 1, maximum: 56), options: options)
        let policy = Policy(
            name: "free", cost: CheckpointCost(blockedSeconds: 0, writeSeconds: 0),
            restart: RestartCost(detectSeconds: 0, rescheduleSeconds: 0, readSeconds: 0))
        let result = try replay.run(policy, intervalSeconds: 1)
        #expect(result.hitCount == 6 && result.growthCount == 4)
    }

    @Test func aTraceWithoutCollapseHasNone() throws {
        let trace = try AvailabilityTrace(
            samples: [(0, 8), (1, 4), (2, 0), (3, 2)].map {
                AvailabilityTrace.Sample(timeSeconds: $0.0, nodeCount: $0.1)
            }, endSeconds: 4)
        let count = AvailabilityCount(trace, unit: 1)
        #expect(count.finalCollapse == 0 && count.removals == 8 && count.additions == 2)
    }

    /// Failures of one node that overlap are one; a node that comes and leaves at once was never
    /// there.
    @Test func aTimelineIsInOrder() throws {
        let timeline = try ReplayTests.failures(
            [(0, 10, 50), (0, 20, 30), (0, 40, 70), (1, 70, 70), (0, 90, 200)], nodes: 2, end: 100)
        #expect(timeline.changes.map(\.timeSeconds) == [10, 70, 70, 70, 90])
        #expect(timeline.changes.map(\.nodeCountChange) == [-1, -1, 1, 1, -1])
        #expect(timeline.departureCount == 3)
        let text = "0,add,a\n1,add,b\n1,remove,b\n2,remove,a\n2,add,a\n"
        let changes = Timeline(try Self.parse(text)[0]).changes
        #expect(changes.map(\.nodeCountChange) == [1, -1, 1])
    }
}
