internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointWriter

struct CreateCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "create",
        abstract: "Create a checkpoint file with room for in-flight + retain checkpoints.",
        usage: """
            pccheck create FILE --capacity SIZE [--in-flight N] [--retain R]
                           [--chunk SIZE] [--prealloc fallocate|zero] [--replace]
                           [--fingerprint TEXT] [--rank N --world-size N]
            """,
        discussion: """
            The file appears under its name only when it is complete and durable. All of its \
            blocks are reserved, so that the disk cannot become full in the middle of a run.

            SIZE is a number of bytes with an optional suffix: K M G T and KiB MiB GiB TiB are \
            powers of 1024, KB MB GB TB powers of 1000.

            Exit status: 0 created, 8 it failed, 16 usage, 32 cancelled.
            """)

    @Argument(help: "The file to create, or a block device to fill.", completion: .file())
    var file: String

    @Option(help: .of("size", "The largest checkpoint that fits."))
    var capacity: ByteSize

    @Option(help: .of("n", "Checkpoints in flight at once, 1 to 64."))
    var inFlight = 2

    @Option(help: .of("n", "Durable checkpoints to keep, 1 to 16."))
    var retain = 1

    @Option(
        help: .of("size", "Unit of I/O and checksums: a multiple of 64K up to 256M (default: 4M)."))
    var chunk: ByteSize?

    enum Preallocation: String, ExpressibleByArgument, CaseIterable {
        case fallocate, zero
    }

    @Option(
        help: .of(
            "fallocate|zero",
            "fallocate: reserve every block, and let the first save into each slot write it. "
                + "zero: write zeros too, which takes as long as writing the whole file."))
    var prealloc = Preallocation.fallocate

    @Option(help: .of("text", "Name of model and topology; a resume with another one is refused."))
    var fingerprint = ""

    @Option(help: .of("n", "This process's rank in a distributed job."))
    var rank: UInt32 = 0

    @Option(help: .of("n", "Processes of the job."))
    var worldSize: UInt32 = 1

    @Flag(
        help: """
            Replace an existing file, behind a symbolic link too. Its checkpoints are lost.
            """)
    var replace = false

    func execute() throws -> ExitStatus {
        var options = CheckpointFile.Options(capacity: capacity.byteCount)
        options.inFlight = inFlight
        options.retain = retain
        options.chunkByteCount = chunk.map { Int(clamping: $0.byteCount) } ?? 4 << 20
        options.preallocation = prealloc == .zero ? .zero : .fallocate
        options.fingerprint = fingerprint
        options.rank = rank
        options.worldSize = worldSize
        options.replacesExisting = replace
        let progress = ProgressBar("writing zeros", total: 0)
        defer { progress.finish() }
        try CheckpointFile.create(path: file, options: options) {
            done, total throws(CheckpointError) in
            try Interruption.check()
            progress.update(done, of: total)
        }
        progress.finish()
        try report()
        return .clean
    }

    private func report() throws(CheckpointError) {
        let inspection = try Inspection(path: file)
        let geometry = inspection.geometry
        let line: StyledText = """
            created \(file, .bold): \(Quantity.plural(geometry.slotCount, "slot")) of \
            \(Quantity.bytes(geometry.slotByteCount)), \
            \(Quantity.bytes(geometry.fileByteCount)) in all
            """
        Output.standard.line(line)
    }
}
