internal import CheckpointFormat
internal import CheckpointStorage
internal import CheckpointWriter

/// Many checkpoints through one writer: nothing may grow.
struct SteadySection: BenchSection {
    /// Facts of the process at one moment.
    struct Moment: Sendable {
        var residentByteCount: UInt64
        var heapByteCount: UInt64
        var descriptorCount: Int

        static var now: Moment {
            Moment(
                residentByteCount: ThisProcess.residentByteCount,
                heapByteCount: ProcessFacts.heapByteCount,
                descriptorCount: ProcessFacts.openDescriptorCount)
        }

        var json: JSONValue {
            .dictionary([
                "resident_byte_count": .integer(residentByteCount),
                "heap_byte_count": .integer(heapByteCount),
                "open_descriptor_count": .count(descriptorCount),
            ])
        }
    }

    var byteCount: UInt64
    var backend: String
    var checkpointCount: Int
    /// After the first tenth, and after the last.
    var early: Moment
    var late: Moment
    /// Milliseconds of each durable save in the second tenth, and in the last.
    var earlySave = Samples()
    var lateSave = Samples()
    /// Milliseconds of every save: its extremes tell of pauses.
    var allSaves = Samples()
}

extension BenchRunner {
    func measureSteady() throws(CheckpointError) -> SteadySection {
        let total = settings.steadyCheckpointCount
        let tenth = max(1, total / 10)
        try checkSpace(
            for: "steady", byteCount: settings.steadyByteCount, slotCount: 3,
            option: "--steady-size")
        let workspace = BenchWorkspace(directory: settings.directory)
        let state = BenchState(byteCount: settings.steadyByteCount)
        let path = try workspace.createFile(
            "steady", capacity: UInt64(state.byteCount), inFlight: 2,
            chunkByteCount: settings.chunkByteCount)
        let writer = try CheckpointWriter(path: path, options: settings.writerOptions)
        var times: [Double] = []
        times.reserveCapacity(total)
        var early = SteadySection.Moment.now
        let every = max(1, total / 100)
        for number in 1...total {
            if number % every == 1 || every == 1 {
                try progress("steady, checkpoint \(number) of \(total)")
            }
            times.append(try save(state.payload, UInt64(number), writer).durable * 1e3)
            if number == tenth { early = .now }
        }
        let late = SteadySection.Moment.now
        let section = SteadySection(
            byteCount: UInt64(state.byteCount), backend: writer.statistics.storageKind.name,
            checkpointCount: total, early: early, late: late,
            earlySave: Samples(Array(times[min(tenth, total - tenth)...].prefix(tenth))),
            lateSave: Samples(Array(times.suffix(tenth))), allSaves: Samples(times))
        try writer.close()
        return section
    }
}

extension SteadySection {
    private var residentGrowth: Int64 {
        Int64(late.residentByteCount) - Int64(early.residentByteCount)
    }
    private var heapGrowth: Int64 { Int64(late.heapByteCount) - Int64(early.heapByteCount) }

    var lines: [StyledText] {
        let title =
            "\(Quantity.count(UInt64(checkpointCount))) checkpoints of "
            + "\(Quantity.bytes(byteCount)) through one writer (\(backend))"
        var table = BenchTable()
        table.add("save, second tenth", earlySave, digits: 2, unit: "ms")
        table.add(
            "save, last tenth", lateSave, digits: 2, unit: "ms",
            "the end is \(Figure.decimal(lateSave.median / earlySave.median, 2)) of it")
        return [StyledText(title, .bold)] + table.lines + [
            StyledText(
                "  since the first tenth: resident memory \(Figure.difference(residentGrowth)), "
                    + "heap \(Figure.difference(heapGrowth)), open descriptors "
                    + "\(early.descriptorCount) → \(late.descriptorCount)"), "",
        ]
    }

    var json: JSONValue {
        .dictionary([
            "byte_count": .integer(byteCount),
            "backend": .string(backend),
            "checkpoint_count": .count(checkpointCount),
            "early": early.json,
            "late": late.json,
            "resident_growth_byte_count": Figure.json(residentGrowth),
            "heap_growth_byte_count": Figure.json(heapGrowth),
            "early_save_milliseconds": earlySave.json(withValues: false),
            "late_save_milliseconds": lateSave.json(withValues: false),
            "save_milliseconds": allSaves.json(withValues: false),
            "ratio_late_to_early": .decimal(lateSave.median / earlySave.median),
        ])
    }
}
