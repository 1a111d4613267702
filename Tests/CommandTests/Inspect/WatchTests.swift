import CheckpointCommands
import CheckpointFormat
import CheckpointStorage
import CheckpointWriter
import Foundation
import Testing

@Suite struct WatchTests {
    /// The lines of one run of `pcinspect watch --json`.
    private func watch(_ path: String, _ arguments: [String]) throws -> [[String: Any]] {
        try lines(ToolRun(.pcinspect, ["watch", path, "--json"] + arguments))
    }

    private func lines(_ run: ToolRun) throws -> [[String: Any]] {
        try run.text.split(separator: "\n").map { line in
            try #require(
                JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any], "\(line)")
        }
    }

    private func events(_ lines: [[String: Any]]) -> [String] {
        lines.compactMap { $0["event"] as? String }
    }

    @Test func aClosedFileEndsTheWatch() throws {
        let file = try SampleFile()
        let run = try ToolRun(.pcinspect, ["watch", file.path, "--until-closed", "--json"])
        #expect(run.status == 0, "\(run.diagnostics)")
        let lines = try lines(run)
        #expect(events(lines) == ["opened", "writer_closed", "sample"])
        let newest = try #require(lines[0]["newest"] as? [String: Any])
        #expect(newest["step"] as? Int == 30 && newest["slot"] as? Int == 2)
        #expect(lines[0]["writer"] as? String == "closed")
        #expect(lines[0]["commits_per_minute"] as? Double ?? 0 > 0)
    }

    @Test func anOpenFileIsWatchedForAsManyLooksAsAskedFor() throws {
        let file = try SampleFile()
        let writer = try CheckpointWriter(path: file.path, options: WriterOptions())
        let lines = try watch(file.path, ["--count", "3", "--interval", "0.02"])
        #expect(events(lines) == ["opened", "writer_started", "sample", "sample", "sample"])
        #expect(lines.allSatisfy { $0["writer"] as? String == "at_work" })
        try writer.close()
    }

    @Test func aWriterThatSavesNothingEndsAWatchWithALimit() throws {
        let file = try SampleFile()
        let writer = try CheckpointWriter(path: file.path, options: WriterOptions())
        let run = try ToolRun(
            .pcinspect,
            ["watch", file.path, "--exit-on-stall", "0.2", "--interval", "0.05"])
        #expect(run.status == 4, "\(run.text)")
        try writer.close()
    }

    @Test func aFileThatIsNotThereIsAnErrorUnlessItIsWaitedFor() throws {
        let folder = try TemporaryDirectory()
        let missing = folder.file("run.pcc")
        let run = try ToolRun(.pcinspect, ["watch", missing])
        #expect(run.status == 8 && run.diagnostics.contains(missing))
        let lines = try watch(missing, ["--wait", "--count", "2", "--interval", "0.02"])
        #expect(events(lines) == ["missing", "sample", "sample"])
    }

    @Test func aFileThatIsReplacedTruncatedAndDeletedIsFollowed() throws {
        let first = try SampleFile(steps: [1])
        let second = try SampleFile(steps: [7, 8])
        let run = try ToolRun(
            shell: """
                "$pcinspect" watch '\(first.path)' --json --interval 0.02 > '\(first.path).log' &
                until_seen() {
                    for _ in $(seq 500); do
                        grep -q "\\"event\\":\\"$1\\"" '\(first.path).log' && return
                        sleep 0.02
                    done
                    echo "never saw $1"
                }
                until_seen opened
                mv '\(second.path)' '\(first.path)'; until_seen replaced
                truncate -s 1M '\(first.path)'; until_seen unreadable
                rm '\(first.path)'; until_seen missing
                kill %1; wait %1; echo "status $?"
                grep -v '"sample"' '\(first.path).log' | grep -o '"event":"[a-z_]*"'
                """)
        #expect(
            run.text == """
                status 32
                "event":"opened"
                "event":"writer_closed"
                "event":"replaced"
                "event":"writer_closed"
                "event":"unreadable"
                "event":"missing"

                """, "\(run.diagnostics)")
    }

    @Test func onATerminalTheScreenIsRedrawnAndTheTerminalGivenBack() throws {
        let file = try SampleFile()
        // q, ^C and SIGTERM must all leave the line discipline as it was.
        for (how, status) in [
            ("os.write(m, b'q')", 0), ("os.write(m, b'\\x03')", 32),
            ("os.kill(child.pid, signal.SIGTERM)", 32),
        ] {
            let run = try ToolRun(
                shell: """
                    python3 - "$pcinspect" '\(file.path)' <<'PYTHON'
                    import fcntl, os, select, signal, struct, subprocess, sys, termios, time
                    m, s = os.openpty()
                    fcntl.ioctl(s, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
                    before = termios.tcgetattr(s)
                    def own(): fcntl.ioctl(0, termios.TIOCSCTTY, 0)
                    child = subprocess.Popen(
                        [sys.argv[1], "watch", sys.argv[2], "--interval", "0.05"], stdin=s,
                        stdout=s, stderr=s, start_new_session=True, preexec_fn=own,
                        env={"LANG": "C.UTF-8", "TERM": "xterm"})
                    seen, end = b"", time.time() + 30
                    def read():
                        global seen
                        if select.select([m], [], [], 0.1)[0]: seen += os.read(m, 65536)
                    while seen.count(b"q leaves") < 3 and time.time() < end: read()
                    raw = termios.tcgetattr(s)[3] & termios.ICANON
                    \(how)
                    while child.poll() is None and time.time() < end: read()
                    while select.select([m], [], [], 0.1)[0]: seen += os.read(m, 65536)
                    print("status", child.returncode)
                    print("keys", raw == 0, "back", termios.tcgetattr(s) == before)
                    print("cursor", seen.count(b"\\x1b[?25l"), seen.count(b"\\x1b[?25h"))
                    screen = seen.split(b"q leaves")[0].decode()
                    print("up", b"A\\r\\x1b[2K" in seen, "lines", screen.count("\\n") < 24)
                    PYTHON
                    """)
            #expect(
                run.text == """
                    status \(status)
                    keys True back True
                    cursor 1 1
                    up True lines True

                    """, "\(how): \(run.text)\(run.diagnostics)")
        }
    }

    @Test func wrongOptionsAreUsageErrors() throws {
        let file = try SampleFile(steps: [])
        for wrong in [["--interval", "0"], ["--count", "0"], ["--exit-on-stall", "nan"]] {
            let run = try ToolRun(.pcinspect, ["watch", file.path] + wrong)
            #expect(run.status == 16, "\(wrong)")
        }
    }
}
