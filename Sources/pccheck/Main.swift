import CheckpointCommands

/// Where the tools are installed this program is all of them, under four names.
@main enum Main {
    static func main() { Tool.named(by: CommandLine.arguments.first ?? "").run() }
}
