internal import ArgumentParser

struct PCcheckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pccheck",
        abstract: "Create, check, show, extract, copy, resize and rescue checkpoint files.",
        discussion: """
            fsck, inspect and extract are pcfsck, pcinspect and pcextract: the same options, \
            output and exit status.

            The Python package adds convert, which turns checkpoints of other formats into .pcc \
            files and back: python -m pccheck convert --help.

            Exit status: 0 done, 4 damage was found, 8 it failed, 16 usage, 32 cancelled.
            """,
        version: Tool.version,
        subcommands: [
            FsckSubcommand.self, InspectSubcommand.self, ExtractSubcommand.self,
            CreateCommand.self, KeepCommand.self, ResizeCommand.self, RescueCommand.self,
            BenchCommand.self, GoodputCommand.self, TuneCommand.self,
        ])
}

/// `pccheck fsck`: so that one program is all of the tools, also where it has one name only.
struct FsckSubcommand: ToolCommand {
    static let configuration = FsckCommand.configuration.subcommand("fsck")

    @OptionGroup var command: FsckCommand

    func execute() throws -> ExitStatus { try command.execute() }
}

/// `pccheck inspect`.
struct InspectSubcommand: ParsableCommand {
    static let configuration = InspectCommand.configuration.subcommand("inspect")
}

/// `pccheck extract`.
struct ExtractSubcommand: ToolCommand {
    static let configuration = ExtractCommand.configuration.subcommand("extract")

    @OptionGroup var command: ExtractCommand

    func execute() throws -> ExitStatus { try command.execute() }
}

extension CommandConfiguration {
    /// A tool as the subcommand `name` of pccheck.
    fileprivate func subcommand(_ name: String) -> CommandConfiguration {
        var configuration = self
        configuration.commandName = name
        configuration.usage = usage.map { Self.usage($0, of: name) }
        return configuration
    }

    /// Every line of the usage with `pccheck fsck` for `pcfsck`, and what is below it indented.
    private static func usage(_ text: String, of name: String) -> String {
        let lines = text.split(separator: "\n").map { line in
            line.hasPrefix("pc\(name)") ? "pccheck \(line.dropFirst(2))" : "      \(line)"
        }
        return lines.joined(separator: "\n")
    }
}
