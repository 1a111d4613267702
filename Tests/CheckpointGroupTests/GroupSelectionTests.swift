import CheckpointFormat
import CheckpointGroup
import CheckpointRecovery
import Testing

/// GROUP.md, "Restart", step 2.
@Suite struct GroupSelectionTests {
    private static let torn = "never completed: its slot is in state writing"
    private static let rejected = "it was rejected when its parts were read"

    static let states: [GroupState] = [
        // While nothing is lost.
        .init("no files", [], "begin", next: 1),
        .init("new files", ["0/2 a0 fresh - -", "1/2 a0 fresh - -"], "begin", next: 1),
        .init(
            "all ranks have the same", ["0/2 w1.10 1.20a 1.10r", "1/2 w1.10 1.20a 1.10r"],
            "resume 1.20/2", watermark: "1.10"),
        .init(
            "one rank is behind", ["0/2 w1.10 1.20a 1.10r", "1/2 1.10a 1.20w"],
            "resume 1.10/2", newer: ["1.20/2 rank 1: \(torn)"], watermark: "1.10"),
        .init(
            "the newest of each is not common", ["0/2 1.30a 1.10r", "1/2 1.20a 1.10r"],
            "resume 1.10/2",
            newer: ["1.30/2 rank 1: not in the file", "1.20/2 rank 0: not in the file"]),
        .init(
            "complete between the barriers", ["0/2 1.20u 1.10a", "1/2 1.20a 1.10r"],
            "resume 1.20/2"),
        .init(
            "a part that nothing keeps any more", ["0/2 1.20a 1.10o", "1/2 1.20w 1.10a"],
            "resume 1.10/2", newer: ["1.20/2 rank 1: \(torn)"]),
        .init("a group of one", ["0/1 1.10a"], "resume 1.10/1"),
        .init(
            "first save torn on one", ["0/2 1.10a", "1/2 fresh 1.10w"], "begin",
            newer: ["1.10/2 rank 1: \(torn)"]),
        .init(
            "first save torn by the medium", ["0/2 1.10a", "1/2 fresh h"], "begin",
            newer: ["1.10/2 rank 1: not in the file"]),
        // Attempts.
        .init(
            "a later attempt counts more than a later step",
            ["0/2 a2 2.15a 1.20r", "1/2 a2 2.15a 1.20r"], "resume 2.15/2", next: 3),
        .init(
            "the same step of two attempts", ["0/2 a2 2.20a 1.10r", "1/2 a2 1.20r 1.10a"],
            "resume 1.10/2",
            newer: ["2.20/2 rank 1: not in the file", "1.20/2 rank 0: not in the file"], next: 3),
        .init(
            "one rank knows a later attempt", ["0/2 a7 1.10a", "1/2 a3 1.10a"], "resume 1.10/2",
            next: 8),
        .init(
            "only a watermark knows a later attempt", ["0/1 a1 w4.10 4.10a"], "resume 4.10/1",
            next: 5, watermark: "4.10"),
        .init(
            "only a torn slot knows a later attempt", ["0/1 a1 1.10a 6.20w"], "resume 1.10/1",
            next: 7),
        .init(
            "the numbers are used up", ["0/1 a9223372036854775807 1.10a"], "resume 1.10/1",
            next: nil),
        .init(
            "no number is too large", ["0/1 w18446744073709551615.18446744073709551615 1.10a"],
            "resume 1.10/1", next: nil,
            watermark: "18446744073709551615.18446744073709551615"),
        // Other numbers of ranks.
        .init(
            "the newest is of another world",
            ["0/2 a1 1.20a", "1/2 a1 1.20a", "0/3 a2 2.30a", "1/3 a2 2.30a", "2/3 a2 2.30a"],
            "resume 2.30/3", next: 3),
        .init(
            "the new world is not complete",
            [
                "0/2 a1 1.20a", "1/2 a1 1.20a", "0/3 a2 w1.20 2.30a", "1/3 a2 w1.20 -",
                "2/3 w1.20 -",
            ],
            "resume 1.20/2", newer: ["2.30/3 ranks 1 to 2: not in the file"], next: 3,
            watermark: "1.20"),
        .init(
            "the new files are not all there yet", ["0/2 1.20a", "1/2 1.20a", "0/4 a0 fresh -"],
            "resume 1.20/2"),
        .init(
            "one file of the old world was deleted",
            ["1/2 w1.10 1.20a 1.10r", "0/1 a2 w1.20 2.30a"],
            "resume 2.30/1", next: 3, watermark: "1.20"),
        // Losses.
        .init(
            "a file is lost", ["0/3 w1.10 1.10a", "2/3 1.10a"], "refuse 1.10",
            newer: ["1.10/3 rank 1: no file"], watermark: "1.10"),
        .init(
            "a file is lost before anybody wrote a watermark", ["0/3 1.10a", "2/3 1.10a"],
            "refuse 1.10", newer: ["1.10/3 rank 1: no file"]),
        .init(
            "a file cannot be read", ["0/2 1.10a", "1/2 !truncated"], "refuse 1.10",
            newer: ["1.10/2 rank 1: run/rank-00001-of-00002.pcc: truncated"],
            problems: ["unusable run/rank-00001-of-00002.pcc"]),
        .init(
            "no file can be read", ["0/1 !truncated"], "refuse ", next: 1,
            problems: ["unusable run/rank-00000-of-00001.pcc"]),
        .init(
            "what nobody else has is no loss", ["0/2 1.10a", "1/2 1.20a h"], "refuse 1.10",
            newer: [
                "1.20/2 rank 0: not in the file",
                "1.10/2 rank 1: not in the file, of which one slot is damaged",
            ]),
        .init(
            "an older one is left after damage", ["0/2 w1.20 1.20a 1.10r", "1/2 1.20t 1.10r"],
            "resume 1.10/2", newer: ["1.20/2 rank 1: its slot is table-damaged"],
            watermark: "1.20"),
        .init(
            "reading it found damage", ["0/2 1.20a 1.10r", "1/2 1.20x 1.10r"], "resume 1.10/2",
            newer: ["1.20/2 rank 1: its slot is payload-damaged"]),
        .init(
            "damage where nothing durable was", ["0/2 1.10a", "1/2 1.5a ~h"], "begin",
            newer: ["1.10/2 rank 1: not in the file", "1.5/2 rank 0: not in the file"]),
        .init(
            "a newer one may come back", ["0/1 1.10a", "0/2 a2 2.20a"], "refuse 2.20",
            newer: ["2.20/2 rank 1: no file"], next: 3),
        .init(
            "a newer one does not come back", ["0/1 1.10a", "0/2 a2 2.20a", "1/2 a2 2.20t"],
            "resume 1.10/1", newer: ["2.20/2 rank 1: its slot is table-damaged"], next: 3),
        .init(
            "another rank could read the file", ["0/2 1.10a", "1/2 1.10a", "1/2 !busy"],
            "resume 1.10/2", problems: ["unusable run/rank-00001-of-00002.pcc"]),
        .init(
            "a newer one is damaged, and an older one may come back",
            ["0/1 1.10a", "0/2 a2 2.20a", "0/3 a3 3.30a", "1/3 a3 3.30t", "2/3 a3 3.30a"],
            "refuse 2.20",
            newer: ["3.30/3 rank 1: its slot is table-damaged", "2.20/2 rank 1: no file"],
            next: 4),
        // What was tried.
        .init(
            "a torn one that hid what is away",
            [
                "0/2 a3 w2.20 ~3.30u 1.10a", "1/2 a3 w2.20 ~3.30u 1.10a", "0/3 a2 2.20a",
                "2/3 a2 2.20a",
            ],
            "refuse 2.20", newer: ["3.30/2 ranks 0 to 1: \(rejected)", "2.20/3 rank 1: no file"],
            next: 4, watermark: "2.20", rejected: "3.30"),
        .init(
            "a torn first save", ["0/2 ~1.10u", "1/2 ~1.10u"], "begin",
            newer: ["1.10/2 ranks 0 to 1: \(rejected)"], rejected: "1.10"),
        .init(
            "one rank had not named it", ["0/2 1.10a", "1/2 ~1.10u"], "begin",
            newer: ["1.10/2 rank 0: \(rejected); rank 1: \(rejected)"], rejected: "1.10"),
        .init(
            "a durable one is damaged, and no other is left", ["0/2 1.10a", "1/2 1.10a"],
            "refuse 1.10", newer: ["1.10/2 ranks 0 to 1: \(rejected)"], rejected: "1.10"),
        .init(
            "a durable one is damaged, and an older one is left",
            ["0/2 1.20a 1.10r", "1/2 1.20a 1.10r"], "resume 1.10/2",
            newer: ["1.20/2 ranks 0 to 1: \(rejected)"], rejected: "1.20"),
        .init(
            "the ranks did not hold the same", ["0/2 1.10a", "1/2 1.10a"], "begin",
            newer: ["1.10/2 ranks 0 to 1: the ranks did not hold the same"],
            rejected: "1.10=void"),
        .init(
            "a void one that hid what is away",
            ["0/1 a3 3.30a 1.10r", "0/2 a2 2.20a"], "refuse 2.20",
            newer: [
                "3.30/1 rank 0: the ranks did not hold the same", "2.20/2 rank 1: no file",
            ], next: 4, rejected: "3.30=void"),
        .init(
            "a void one that hid what is lost",
            ["0/2 w1.10 1.20a 1.10t", "1/2 w1.10 1.20a 1.10r"], "refuse 1.10",
            newer: [
                "1.20/2 ranks 0 to 1: the ranks did not hold the same",
                "1.10/2 rank 0: its slot is table-damaged",
            ], watermark: "1.10", rejected: "1.20=void"),
        .init(
            "what no file has is not rejected", ["0/1 1.10a"], "resume 1.10/1", rejected: "9.99"),
        // What does not belong together.
        .init(
            "a file of another run", ["0/2 1.10a", "1/2 run=b 1.10a", "0/1 1.10a"],
            "refuse ", newer: ["1.10/2 rank 1: no file"],
            problems: [
                "two-worlds run/rank-00000-of-00001.pcc", "other-run run/rank-00001-of-00002.pcc",
            ]),
        .init(
            "a file without a group", ["0/1 1.10a", "0/1 path=a.pcc run=none 0.99a"],
            "resume 1.10/1", problems: ["no-group a.pcc"]),
        .init(
            "no file has a group", ["0/1 path=a.pcc run=none 0.99a"], "refuse ", next: 1,
            problems: ["no-group a.pcc"]),
        .init(
            "a file under the name of another rank",
            ["0/2 1.10a", "1/2 path=rank-00003-of-00004.pcc 1.10a"], "refuse ",
            problems: ["other-name rank-00003-of-00004.pcc"]),
        .init(
            "two files of one rank", ["0/2 1.10a", "1/2 1.10a", "1/2 path=b.pcc file=9 1.10a"],
            "refuse 1.10",
            newer: ["1.10/2 rank 1: two files: b.pcc and run/rank-00001-of-00002.pcc"],
            problems: ["two-files b.pcc", "two-files run/rank-00001-of-00002.pcc"]),
        .init(
            "three files of one rank",
            ["0/1 1.10a", "0/1 path=b.pcc file=9 1.10a", "0/1 path=c.pcc file=8 1.10a"],
            "refuse ", next: 1,
            problems: [
                "two-files b.pcc", "two-files c.pcc", "two-files run/rank-00000-of-00001.pcc",
            ]),
        .init(
            "one file, reported twice", ["0/1 1.10a", "0/1 1.10a", "0/1 path=/mnt/b.pcc 1.10a"],
            "resume 1.10/1"),
        .init(
            "one file, reported before and after a commit",
            ["0/1 gen=2 1.10a", "0/1 gen=3 1.20a 1.10r", "0/1 gen=2 1.10a"], "resume 1.20/1"),
        .init(
            "a stale copy of a file", ["0/1 gen=3 1.20a", "0/1 path=old.pcc gen=2 1.10a"],
            "refuse ", next: 1,
            problems: ["two-files old.pcc", "two-files run/rank-00000-of-00001.pcc"]),
        .init(
            "one attempt with two numbers of ranks",
            ["0/1 1.20a", "0/2 1.20a 1.10r", "1/2 1.20a 1.10r"], "refuse ",
            problems: ["two-worlds run/rank-00000-of-00001.pcc"]),
    ]

    @Test(arguments: states) func decision(_ state: GroupState) throws {
        let decision = GroupSelection.decide(try state.reports, rejected: state.rejected)
        #expect(decision.outcomeText == state.outcome)
        #expect(decision.newerIncomplete.map(\.missingText) == state.newer)
        #expect(decision.nextAttempt == state.next)
        #expect(decision.watermark?.short == state.watermark)
        #expect(decision.problems.map { "\($0.kind.rawValue) \($0.path)" } == state.problems)
        for problem in decision.problems { #expect(!problem.message.isEmpty) }
    }

    /// What every rank must decide alike does not depend on the order in which files were read.
    @Test(arguments: states) func orderOfTheReportsCountsNothing(_ state: GroupState) throws {
        let reports = try state.reports
        let one = GroupSelection.decide(reports, rejected: state.rejected)
        let other = GroupSelection.decide(reports.reversed(), rejected: state.rejected)
        #expect(one.outcomeText == other.outcomeText)
        #expect(one.newerIncomplete.map(\.missingText) == other.newerIncomplete.map(\.missingText))
        #expect(one.nextAttempt == other.nextAttempt)
        #expect(one.problems.map(\.path) == other.problems.map(\.path))
    }

    @Test func partsAreThoseThatRecoveryTriesFirst() throws {
        let reports = try [
            GroupState.report("0/2 1.20o 1.20a 1.10r"), GroupState.report("1/2 1.20u 1.10a"),
        ]
        let choice = try #require(GroupSelection.decide(reports).choice)
        #expect(choice.parts.map(\.rank) == [0, 1])
        #expect(choice.parts.map(\.reason) == [.older, .unanchored])
        #expect(choice.parts.map(\.sequence.rawValue) == [100, 100])
        #expect(choice.parts.map(\.slot.rawValue) == [0, 0])
        #expect(
            choice.parts.map(\.path) == [
                "run/rank-00000-of-00002.pcc", "run/rank-00001-of-00002.pcc",
            ])
    }

    /// A watermark above everything that is complete means that something was lost.
    @Test(arguments: [
        (["0/1 w1.20 1.10a"], "1.20"), (["0/1 w1.10 1.10a"], nil),
        (["0/2 1.20a 1.10r", "1/2 1.20t 1.10r"], "1.20"),
        (["0/2 1.20a 1.10r", "1/2 1.20w 1.10r"], nil), ([], nil),
    ])
    func lostCheckpoints(_ files: [String], _ lost: String?) throws {
        let decision = GroupSelection.decide(try files.map(GroupState.report))
        #expect(decision.lost?.short == lost)
    }
}

/// What programs read: pccheck.h, pcc_group_decide.
@Suite struct GroupJSONTests {
    @Test func everythingIsInTheDocument() throws {
        let text = try GroupSelection.decide([
            GroupState.report("0/2 w1.10 1.20a 1.10r"), GroupState.report("1/2 1.10a"),
            GroupState.report("0/3 !gone"),
        ]).json.text
        let path = "run/rank-0000"
        #expect(
            text == #"{"run":"0a000000-0000-0000-0000-000000000000","outcome":"resume","#
                + #""lost":null,"next_attempt":2,"watermark":{"attempt":1,"step":10},"#
                + #""checkpoints":[{"attempt":1,"step":20,"world_size":2,"is_complete":false,"#
                + #""files":[{"rank":0,"path":"\#(path)0-of-00002.pcc","slot":0,"#
                + #""sequence":100,"reason":"anchored"}],"missing":[{"rank":1,"last_rank":1,"#
                + #""reason":"not in the file"}]},{"attempt":1,"step":10,"world_size":2,"#
                + #""is_complete":true,"files":[{"rank":0,"path":"\#(path)0-of-00002.pcc","#
                + #""slot":1,"sequence":99,"reason":"retained"},{"rank":1,"#
                + #""path":"\#(path)1-of-00002.pcc","slot":0,"sequence":100,"#
                + #""reason":"anchored"}],"missing":[]}],"omitted_count":0,"#
                + #""worlds":[{"world_size":3,"file_count":0,"missing":[{"rank":0,"last_rank":0,"#
                + #""reason":"\#(path)0-of-00003.pcc: gone"},{"rank":1,"last_rank":2,"#
                + #""reason":"no file"}]},{"world_size":2,"file_count":2,"missing":[]}],"#
                + #""problems":[{"kind":"unusable","path":"\#(path)0-of-00003.pcc","#
                + #""message":"gone"}]}"#)
    }

    @Test(arguments: [
        ([], "begin", "null"), (["0/1 w1.20 1.10a"], "resume", #"{"attempt":1,"step":20}"#),
        (["0/2 1.10a"], "refuse", #"{"attempt":1,"step":10}"#),
    ])
    func outcomes(_ files: [String], _ outcome: String, _ lost: String) throws {
        let text = GroupSelection.decide(try files.map(GroupState.report)).json.text
        #expect(text.contains(#""outcome":"\#(outcome)","lost":\#(lost),"#))
    }
}

/// Numbers that no run reaches.
@Suite struct GroupLimitTests {
    private static func file(
        _ rank: UInt32, of worldSize: UInt32, _ names: [GroupCheckpointName]
    ) -> GroupReport {
        let bytes = (0..<16).map { UInt8(truncatingIfNeeded: rank >> (8 * UInt32($0 % 4))) }
        return .file(
            GroupFileReport(
                path: "rank", fileUUID: Identifier128(bytes: bytes),
                runUUID: Identifier128(bytes: [UInt8](repeating: 7, count: 16)), rank: rank,
                worldSize: worldSize, generation: Generation(rawValue: 1), attempt: 1,
                watermark: nil, mayHoldDurable: true,
                slots: names.enumerated().map {
                    .init(
                        slot: SlotIndex($0), reason: $0 == 0 ? .anchored : .retained,
                        sequence: SequenceNumber(rawValue: 100 - UInt64($0)), name: $1)
                }))
    }

    @Test func aWorldOfFourBillionRanks() throws {
        let name = GroupCheckpointName(attempt: 1, step: 1)
        let decision = GroupSelection.decide([
            Self.file(0, of: .max, [name]), Self.file(.max - 1, of: .max, [name]),
        ])
        let missing = try #require(decision.checkpoints.first).missing
        #expect(missing.map(\.ranks) == [1...(.max - 2)])
        #expect(decision.outcome == .refuse(name))
    }

    @Test func thousandsOfFiles() throws {
        let names = (1...17).map { GroupCheckpointName(attempt: 1, step: UInt64(1000 - $0)) }
        let reports = (UInt32(0)..<4096).map {
            Self.file($0, of: 4096, $0 == 9 ? [names[3]] : names)
        }
        let decision = GroupSelection.decide(reports)
        #expect(decision.choice?.name == names[3])
        #expect(decision.checkpoints.count == 17)
        #expect(decision.newerIncomplete.count == 3)
        for checkpoint in decision.newerIncomplete {
            #expect(checkpoint.missing.map(\.ranks) == [9...9])
        }
    }

    /// Thousands of names, none of them common: only the newest are described.
    @Test func thousandsOfNames() {
        let reports = (UInt32(0)..<2048).map { rank in
            let first = UInt64(rank) * 17
            return Self.file(
                2 * rank, of: 4096,
                (first..<first + 17).map { GroupCheckpointName(attempt: 1, step: $0) })
        }
        let decision = GroupSelection.decide(reports)
        #expect(decision.checkpoints.count == GroupDecision.incompleteCountMaximum)
        #expect(decision.omittedCount == 2048 * 17 - GroupDecision.incompleteCountMaximum)
        #expect(decision.checkpoints.first?.name.step == 2048 * 17 - 1)
    }
}

@Suite struct RankFileNameTests {
    @Test(arguments: [
        ("rank-00003-of-00008.pcc", "3/8"), ("/a/b/rank-00000-of-00001.pcc", "0/1"),
        ("rank-123456-of-4294967295.pcc", "123456/4294967295"), ("rank-3-of-8.pcc", nil),
        ("rank-00008-of-00008.pcc", nil), ("rank-00003-of-00008.pcc.bak", nil),
        ("rank-00003-of-00008.pcc.creating-1", nil), ("rank-00003-of-4294967296.pcc", nil),
        ("rank-000003-of-00008.pcc", nil), ("Rank-00003-of-00008.pcc", nil), ("", nil),
        ("rank-00003-of-00008", nil), ("rank--0003-of-00008.pcc", nil), ("/", nil),
    ])
    func parsing(_ path: String, _ expected: String?) {
        let name = RankFileName(path: path)
        #expect(name.map { "\($0.rank)/\($0.worldSize)" } == expected)
        if let name { #expect(path.hasSuffix(name.description)) }
    }
}
