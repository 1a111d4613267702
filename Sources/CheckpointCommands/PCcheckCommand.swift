internal import ArgumentParser

struct PCcheckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pccheck",
        abstract: "Create checkpoint files, and measure what this machine can do.",
        discussion: "Exit status: 0 done, 8 it failed, 16 usage, 32 cancelled.",
        version: Tool.version,
        subcommands: [
            CreateCommand.self, BenchCommand.self,
        ])
}
