import CheckpointCommands
import Foundation
import Testing

/// `pccheck tune` with the real binary.
@Suite struct TuneTests {
    typealias Object = [String: Any]

    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private static func profile(deviceRate: Double = 1e9, flush: String = "0.003") -> String {
        let points = [(1, 0.5), (2, 0.8), (4, 1.0)].map { depth, share in
            let rate = deviceRate * share
            return """
                {"write_byte_count": 1048576, "queue_depth": \(depth),
                 "bytes_per_second": [\(rate * 0.9), \(rate), \(rate * 1.1)]}
                """
        }
        return """
            {"processor_count": 8, "device": [\(points.joined(separator: ","))],
             "flush_seconds": [0.002, \(flush), 0.02], "block_seconds": [0.002, 0.003, 0.02],
             "commit_seconds": [0.005, 0.007, 0.04],
             "memory_bytes_per_second": [35e9, 40e9, 42e9],
             "digest_bytes_per_second": [9e9, 10e9, 10e9], "call_seconds": [2e-4, 3e-4, 4e-4]}
            """
    }

    private func tune(_ profile: String, _ arguments: [String] = []) throws -> ToolRun {
        let path = directory.file("profile.json")
        try Data(profile.utf8).write(to: URL(filePath: path))
        let job = ["--state", "10GB", "--step-seconds", "0.5", "--mtbf-seconds", "20000"]
        return try ToolRun(.pccheck, ["tune", "--profile", path] + job + arguments)
    }

    private func figure(_ document: Object, _ name: String) throws -> Double {
        if let estimate = document[name] as? Object {
            return try #require(estimate["value"] as? Double)
        }
        return try #require(document[name] as? Double)
    }

    @Test func aRecommendationKeepsToTheBudget() throws {
        let run = try tune(Self.profile(), ["--json"])
        try #require(run.status == 0, "\(run.diagnostics)")
        let document = try run.json()
        #expect(try figure(document, "overhead") <= 0.03)
        #expect(document["limit"] as? String == "device")
        // 10 s with four workers; two, which write at four fifths, may be as good.
        #expect(try (9.5...13).contains(figure(document, "alone_write_seconds")))
        #expect((document["changes"] as? [Object])?.count == 7)
        #expect(try tune(Self.profile(), ["--json"]).output == run.output, "it is repeatable")
        let slow = try tune(Self.profile(deviceRate: 1e8), ["--json"]).json()
        #expect(try figure(slow, "goodput") < figure(document, "goodput"))
        #expect(try figure(slow, "durable_seconds") > 5 * figure(document, "durable_seconds"))
    }

    @Test func everyOptionReachesTheModel() throws {
        func document(_ arguments: [String]) throws -> Object {
            let run = try tune(Self.profile(), ["--json"] + arguments)
            try #require(run.status == 0, "\(run.diagnostics)")
            return try run.json()
        }
        let plain = try document([])
        func changes(_ arguments: [String], _ name: String) throws -> Bool {
            try figure(document(arguments), name) != figure(plain, name)
        }
        #expect(try changes(["--restart-seconds", "900"], "goodput"))
        #expect(try changes(["--ranks", "64"], "busiest_seconds"))
        #expect(try changes(["--ranks", "4", "--ranks-per-machine", "4"], "busiest_seconds"))
        #expect(try changes(["--retain", "3"], "disk_byte_count"))
        #expect(try changes(["--busy-processors", "8"], "slowdown"))
        #expect(try changes(["--memory-use", "30GB"], "blocked_seconds"))
        #expect(try changes(["--other-load", "500MB"], "busiest_seconds"))
        #expect(try changes(["--overlap", "0.7"], "blocked_seconds"))
        #expect(try figure(document(["--slowdown", "0.22"]), "slowdown") == 0.22)
        #expect(try figure(document(["--budget", "0.001"]), "overhead") <= 0.001)
        #expect(try figure(document(["--memory", "1GB"]), "memory_byte_count") <= 1e9)
        #expect(try figure(document(["--disk", "21GB"]), "disk_byte_count") <= 21e9)
        let setting = try #require(document(["--writes-per-worker", "4"])["setting"] as? Object)
        #expect(setting["writes_per_worker"] as? Int == 4)
    }

    @Test func whatIsFixedIsTaken() throws {
        let fixed = [
            "--fix-in-flight", "3", "--fix-chunk", "4MiB", "--fix-workers", "2",
            "--fix-pool", "1GiB", "--fix-codec", "none", "--fix-interval", "5", "--json",
        ]
        let document = try tune(Self.profile(), fixed).json()
        let setting = try #require(document["setting"] as? Object)
        #expect(setting["in_flight_count"] as? Int == 3)
        #expect(setting["chunk_byte_count"] as? Int == 4 << 20)
        #expect(setting["writer_worker_count"] as? Int == 2)
        #expect(setting["pool_byte_count"] as? Double == Double(1 << 30))
        #expect(document["interval_steps"] as? Int == 5)
        #expect(document["bound"] as? String == "fixed")
        // 12.5 s of the device, every 2.5 s: it is predicted, and far above the budget.
        #expect(try figure(document, "overhead") > 3)
        let some = try tune(Self.profile(), ["--fix-workers", "1", "--json"]).json()
        #expect((some["setting"] as? Object)?["writer_worker_count"] as? Int == 1)
        #expect(some["bound"] as? String != "fixed")
    }

    @Test func failuresAreCountedInATrace() throws {
        // Node 0 fails every 1000 s, node 1 never, and the hits of a job of both are those of node
        // 0. A restart takes 100 s, which is no running time.
        let failures = (1...30).map { "0,\($0 * 1000),\($0 * 1000)" }.joined(separator: "\n")
        let trace = directory.file("trace.csv")
        let header = "node,start_seconds,end_seconds\n"
        try Data((header + failures).utf8).write(to: URL(filePath: trace))
        let size = ["--trace-nodes", "2", "--trace-days", "0.5"]
        let path = directory.file("profile.json")
        try Data(Self.profile().utf8).write(to: URL(filePath: path))
        func tuned(_ arguments: [String]) throws -> ToolRun {
            let job = ["--profile", path, "--state", "10GB", "--step-seconds", "0.5"]
            return try ToolRun(.pccheck, ["tune"] + job + arguments)
        }
        let job = ["--trace", trace, "--ranks", "2", "--restart-seconds", "100"] + size
        let document = try tuned(job + ["--json"]).json()
        #expect(document["hit_count"] as? Double == 30)
        // 1000 s and 29 times 900 s, and 13100 s after the last restart.
        #expect(try abs(figure(document, "mtbf_seconds") - (1000 + 29 * 900 + 13100) / 30) < 0.5)
        let given = try tuned([
            "--mtbf-seconds", "\(figure(document, "mtbf_seconds"))", "--ranks", "2",
            "--restart-seconds", "100", "--json",
        ]).json()
        #expect(document["interval_steps"] as? Int == given["interval_steps"] as? Int)
        #expect(given["hit_count"] is NSNull)
        let shown = try tuned(job)
        #expect(shown.text.contains("30.0 hits in the trace"), "\(shown.text)")
        #expect(!shown.text.contains("note:"))
        let few = try tuned(job + ["--restart-seconds", "12000"])
        #expect(few.text.contains("note: the trace has 1.0 hits of the job"), "\(few.text)")
        #expect(try tuned(["--trace", trace, "--ranks", "3"] + size).status == 16)
        let both = try tuned(job + ["--mtbf-seconds", "1000"])
        #expect(both.status == 16 && both.diagnostics.contains("either --mtbf-seconds or --trace"))
        #expect(try tuned(["--mtbf-seconds", "9", "--trace-nodes", "4"]).status == 16)
        let other = directory.file("never.csv")
        let growing = ",Time,GPUs\n0,0,4\n1,100,8\n2,40000,8\n"
        try Data(growing.utf8).write(to: URL(filePath: other))
        let unhit = try tuned(["--trace", other])
        #expect(unhit.status == 16 && unhit.diagnostics.contains("is never hit"))
    }

    /// A file names the nodes that failed. A job that is smaller than the trace has few of them.
    @Test func aSmallJobIsHitAsOftenAsItsNodes() throws {
        let failures = (1...50).map { "n\($0),\($0 * 100_000),\($0 * 100_000)" }
        let trace = directory.file("trace.csv")
        let text = "node,start_seconds,end_seconds\n" + failures.joined(separator: "\n")
        try Data(text.utf8).write(to: URL(filePath: trace))
        let job = [
            "--trace", trace, "--trace-nodes", "500", "--trace-days", "60", "--restart-seconds",
            "0",
        ]
        func tuned(_ arguments: [String]) throws -> ToolRun {
            let path = directory.file("profile.json")
            try Data(Self.profile().utf8).write(to: URL(filePath: path))
            let all = ["--profile", path, "--state", "10GB", "--step-seconds", "0.5"] + job
            return try ToolRun(.pccheck, ["tune"] + all + arguments)
        }
        // A tenth of the nodes, and 50 failures.
        let document = try tuned(["--ranks", "50", "--json"]).json()
        let hits = try #require(document["hit_count"] as? Double)
        #expect((3.5...6.5).contains(hits))
        let mean = try figure(document, "mtbf_seconds")
        #expect(abs(mean - 60 * 86_400 / hits) < 1)
        #expect(try tuned(["--ranks", "500", "--json"]).json()["hit_count"] as? Double == 50)
        let large = try tuned(["--ranks", "501"])
        #expect(large.status == 16 && large.diagnostics.contains("the trace at most 500 nodes"))
        #expect(try tuned(["--ranks=\(Int.min)"]).status == 16)
    }

    @Test func theTextHasTheSameFigures() throws {
        let run = try tune(Self.profile())
        try #require(run.status == 0, "\(run.diagnostics)")
        let steps = try figure(tune(Self.profile(), ["--json"]).json(), "interval_steps")
        #expect(run.text.contains("\(Int(steps)) steps"), "\(run.text)")
        for name in ["in flight", "goodput", "busiest", "twice the failures"] {
            #expect(run.text.contains(name), "\(run.text)")
        }
    }

    @Test func aBadProfileIsAnError() throws {
        let path = directory.file("none.json")
        let job = ["--state", "1GB", "--step-seconds", "1", "--mtbf-seconds", "1000"]
        #expect(try ToolRun(.pccheck, ["tune", "--profile", path] + job).status == 8)
        for text in ["", "{}", "[]", "{\"processor_count\": 8", Self.profile() + "x"] {
            let run = try tune(text)
            #expect(run.status == 8 && run.output.isEmpty, "\(text)")
            #expect(run.diagnostics.contains("profile.json: "), "\(run.diagnostics)")
        }
        let negative = try tune(Self.profile(flush: "-1"))
        #expect(negative.status == 8)
        #expect(negative.diagnostics.contains("the time of a flush is -1"))
        let large = try tune(String(repeating: " ", count: 2 << 20))
        #expect(large.status == 8 && large.diagnostics.contains("larger than 1 MiB"))
    }

    @Test(arguments: [
        ["--budget", "0"], ["--budget", "nan"], ["--in-flight", "0"], ["--disk", "1GB"],
        ["--memory", "1"], ["--other-load", "5GB"], ["--overlap", "2"], ["--confidence", "1"],
        ["--ranks", "0"], ["--retain", "99"], ["--busy-processors", "9"],
        ["--fix-in-flight", "65"], ["--fix-chunk", "100KB"], ["--fix-workers", "0"],
        ["--fix-chunk", "4MiB", "--fix-pool", "1MiB"], ["--fix-interval", "0"],
    ])
    func whatIsImpossibleIsRefused(arguments: [String]) throws {
        let run = try tune(Self.profile(), arguments)
        #expect(run.status == 16 && run.output.isEmpty, "\(run.diagnostics)")
        #expect(run.diagnostics.contains("expected") || run.diagnostics.contains("fits"))
    }

    @Test func aPoolThatIsTooSmallIsToldTheLeast() throws {
        let run = try tune(Self.profile(), ["--fix-pool", "1"])
        #expect(run.status == 16 && run.diagnostics.contains("1 bytes, expected at least 1048576"))
    }

    @Test func aProfileIsReadOrMade() throws {
        for option in ["--directory", "--save-profile"] {
            let run = try tune(Self.profile(), [option, directory.file("x")])
            #expect(run.status == 16 && run.diagnostics.contains("nothing is measured"))
        }
    }
}
