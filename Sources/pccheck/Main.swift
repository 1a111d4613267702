import CheckpointCommands

@main enum Main {
    static func main() { Tool.pccheck.run() }
}
