internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointRecovery

struct InspectSuperCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "super",
        abstract: "The identity block and all copies of the superblock.")

    @OptionGroup var options: InspectedFile

    func execute() throws -> ExitStatus {
        let inspection = try Inspection(path: options.file)
        if options.json {
            Output.standard.write(
                JSONValue.document(
                    tool: "pcinspect",
                    [
                        "file": InspectionJSON.file(inspection),
                        "identity": InspectionJSON.identity(inspection),
                        "identity_copies": InspectionJSON.identityCopies(inspection),
                        "superblocks": InspectionJSON.superblocks(inspection),
                    ]
                ).bytes)
        } else {
            let output = Output.standard
            identityLines(inspection, width: output.columnCount).forEach(output.line)
            output.line()
            copyLines(inspection, width: output.columnCount).forEach(output.line)
            if let superblock = inspection.decision.superblock {
                output.line()
                superblockLines(superblock, inspection, width: output.columnCount)
                    .forEach(output.line)
            }
        }
        return inspection.status
    }

    private func identityLines(_ inspection: Inspection, width: Int?) -> [StyledText] {
        let identity = inspection.decision.identity
        let geometry = identity.geometry
        var table = TableLayout([.left(""), .left("")])
        func add(_ name: String, _ value: StyledText) {
            table.add([StyledText(name, .dim), value])
        }
        for copy in inspection.decision.identityFindings {
            let state: StyledText =
                SummaryScreen.failure(copy.result).map { StyledText($0, .red) }
                ?? (copy.agreesWithChosen
                    ? StyledText("whole", .green) : StyledText("differs", .red))
            add("identity (\(copy.position.rawValue))", "byte \(copy.offset): \(state)")
        }
        add("format version", "\(identity.version.major).\(identity.version.minor)")
        add("file id", "\(identity.fileUUID)")
        add("creator", "\(identity.creator), \(Quantity.date(identity.createdTime))")
        add("fingerprint", "\(identity.fingerprint.isEmpty ? "—" : identity.fingerprint)")
        add("rank", "\(identity.rank) of \(identity.worldSize)")
        let features = identity.features
        add(
            "features",
            """
            compat 0x\(String(features.compatible, radix: 16)), ro_compat \
            0x\(String(features.readOnlyCompatible, radix: 16)), incompat \
            0x\(String(features.incompatible, radix: 16))
            """)
        add(
            "slots",
            """
            \(geometry.slotCount): \(geometry.inFlightCount) in flight + \(geometry.retainCount) \
            retained, of \(Quantity.bytes(geometry.slotByteCount))
            """)
        add(
            "chunks",
            """
            \(Quantity.bytes(UInt64(geometry.chunkByteCount))), at most \
            \(Quantity.count(UInt64(geometry.chunkCapacity))) in a slot
            """)
        add(
            "metadata region",
            "byte \(geometry.metadataOffset), \(geometry.metadataStride) bytes per slot")
        add("data region", "byte \(geometry.dataOffset), \(geometry.dataStride) bytes per slot")
        add("file size", "\(geometry.fileByteCount) bytes")
        return ["\("identity block", .bold)"] + table.wrappedLines(width: width)
    }

    private func copyLines(_ inspection: Inspection, width: Int?) -> [StyledText] {
        var table = TableLayout([
            .left("copy"), .right("byte"), .right("generation"), .right("sequence"),
            .right("step"), .right("slot"), .flexible("state"),
        ])
        for copy in inspection.decision.superblockFindings {
            let name = "\(copy.position.rawValue), \(copy.parity == 0 ? "even" : "odd")"
            guard let superblock = copy.superblock else {
                let why = SummaryScreen.failure(copy.result) ?? ""
                table.add(
                    ["\(name)", "\(copy.offset)", "—", "—", "—", "—", StyledText(why, .red)])
                continue
            }
            let anchor = superblock.anchor
            table.add([
                "\(name)", "\(copy.offset)", "\(superblock.generation)",
                "\(anchor.map { "\($0.sequence)" } ?? "—")",
                "\(anchor.map { "\($0.step)" } ?? "—")",
                "\(anchor.map { "\($0.slot)" } ?? "—")", state(copy),
            ])
        }
        return ["\("superblock copies", .bold)"] + table.lines(width: width)
    }

    private func state(_ copy: SuperblockReport) -> StyledText {
        switch copy.target {
        case .differs(let found?):
            StyledText("whole, but its slot holds sequence \(found)", .yellow)
        case .differs(nil): StyledText("whole, but its slot holds something else", .yellow)
        default: StyledText("whole", .green)
        }
    }

    private func superblockLines(
        _ superblock: Superblock, _ inspection: Inspection, width: Int?
    ) -> [StyledText] {
        var table = TableLayout([.left(""), .left("")])
        func add(_ name: String, _ value: StyledText) {
            table.add([StyledText(name, .dim), value])
        }
        let age = Quantity.age(of: superblock.commitTime, now: inspection.now)
        add("generation", "\(superblock.generation)")
        add("written", "\(Quantity.date(superblock.commitTime)), \(age)")
        add("clean close", "\(superblock.isCleanClose ? "yes" : "no")")
        add(
            "writer",
            """
            process \(superblock.writerPID) on boot \(superblock.writerBootID), \
            \(superblock.storageKind.name) storage
            """)
        if superblock.storageKind == .persistentMemory {
            add("unsafe shutdowns", "\(superblock.unsafeShutdownCount)")
        }
        if let anchor = superblock.anchor {
            add(
                "anchors", "step \(anchor.step), sequence \(anchor.sequence), slot \(anchor.slot)")
            add("header digest", "\(anchor.headerDigest)")
        } else {
            add("anchors", "nothing yet")
        }
        let retained = superblock.retained.map { "slot \($0.slot) (sequence \($0.sequence))" }
        add("retains", "\(retained.isEmpty ? "—" : retained.joined(separator: ", "))")
        add("parent digest", "\(superblock.parentDigest)")
        add("watermark step", "\(superblock.watermarkStep.map { "\($0)" } ?? "unknown")")
        return ["\("newest superblock", .bold)"] + table.wrappedLines(width: width)
    }
}
