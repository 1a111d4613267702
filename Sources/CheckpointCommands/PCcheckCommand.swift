internal import ArgumentParser

struct PCcheckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pccheck",
        abstract: "Create, copy, resize and rescue checkpoint files.",
        discussion: "Exit status: 0 done, 8 it failed, 16 usage, 32 cancelled.",
        version: Tool.version,
        subcommands: [
            CreateCommand.self, KeepCommand.self, ResizeCommand.self, RescueCommand.self,
            BenchCommand.self,
        ])
}
