internal import ArgumentParser

struct PCcheckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pccheck",
        abstract: "Create, copy and rescue checkpoint files, and measure this machine.",
        discussion: "Exit status: 0 done, 8 it failed, 16 usage, 32 cancelled.",
        version: Tool.version,
        subcommands: [
            CreateCommand.self, KeepCommand.self, RescueCommand.self, BenchCommand.self,
        ])
}
