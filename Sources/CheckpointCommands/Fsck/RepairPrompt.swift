internal import CheckpointCheck
internal import CheckpointFormat

#if canImport(Glibc)
    internal import Glibc
#endif

/// Asks a person what a repair must not decide alone.
enum RepairPrompt {
    /// Asks each question once, on a terminal; without one nothing is agreed to.
    ///
    /// - Returns: identifiers of the problems to which the answer was yes.
    /// - Throws: `cancelled` after a signal.
    static func consents(
        to questions: [RepairQuestion], about path: String
    ) throws(CheckpointError) -> Set<String> {
        let output = Output.diagnostics
        guard isatty(STDIN_FILENO) == 1, output.isTerminal else { return [] }
        Output.standard.flush()
        var consents: Set<String> = []
        for question in questions where !consents.contains(question.problem.id) {
            let head: StyledText = """
                \(path, .bold): \(question.problem.id)  \(question.problem.title, .bold)
                """
            output.line(head)
            output.show { TextWrap.lines(question.text, indent: 2, width: $0) }
            output.write(Array("  yes or no? [n] ".utf8))
            output.flush()
            if ["y", "yes"].contains(try answer().lowercased()) {
                consents.insert(question.problem.id)
            }
        }
        return consents
    }

    /// One line of standard input without white space; empty at its end.
    private static func answer() throws(CheckpointError) -> String {
        var line: [UInt8] = []
        while line.count < 100 {
            try Interruption.check()
            var waiting = pollfd(fd: STDIN_FILENO, events: Int16(POLLIN), revents: 0)
            // Safe: both calls work on the variable that they are given.
            let count = unsafe poll(&waiting, 1, 200)
            if count <= 0 { continue }
            var byte: UInt8 = 0
            guard unsafe Glibc.read(STDIN_FILENO, &byte, 1) == 1, byte != 0x0A else { break }
            if byte > 0x20 { line.append(byte) }
        }
        return String(decoding: line, as: UTF8.self)
    }
}
