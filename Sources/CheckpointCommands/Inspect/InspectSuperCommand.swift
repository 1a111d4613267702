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
            Output.standard.document(
                "pcinspect",
                [
                    "file": InspectionJSON.file(inspection),
                    "identity": InspectionJSON.identity(inspection),
                    "identity_copies": InspectionJSON.identityCopies(inspection),
                    "superblocks": InspectionJSON.superblocks(inspection),
                ])
        } else {
            let output = Output.standard
            output.show { identityLines(inspection, width: $0) }
            output.line()
            output.show { copyLines(inspection, width: $0) }
            if let superblock = inspection.decision.superblock {
                output.line()
                output.show { superblockLines(superblock, inspection, width: $0) }
            }
        }
        return inspection.status
    }

    private func identityLines(_ inspection: Inspection, width: Int?) -> [StyledText] {
        let identity = inspection.decision.identity
        let geometry = identity.geometry
        var facts = FactTable()
        for copy in inspection.decision.identityFindings {
            let state: StyledText =
                SummaryScreen.failure(copy.result).map { StyledText($0, .red) }
                ?? (copy.agreesWithChosen
                    ? StyledText("intact", .green) : StyledText("differs", .red))
            facts.add("identity (\(copy.position.rawValue))", "byte \(copy.offset): \(state)")
        }
        facts.add("format version", "\(identity.version.major).\(identity.version.minor)")
        facts.add("file id", "\(identity.fileUUID)")
        facts.add("creator", "\(identity.creator), \(Quantity.date(identity.createdTime))")
        facts.add("fingerprint", "\(identity.fingerprint.isEmpty ? "—" : identity.fingerprint)")
        facts.add("rank", "\(identity.rank) of \(identity.worldSize)")
        if identity.isOfGroup { facts.add("run", "\(identity.runUUID)") }
        let features = identity.features
        facts.add(
            "features",
            """
            compat 0x\(String(features.compatible, radix: 16)), ro_compat \
            0x\(String(features.readOnlyCompatible, radix: 16)), incompat \
            0x\(String(features.incompatible, radix: 16))
            """)
        facts.add(
            "slots",
            """
            \(geometry.slotCount): \(geometry.inFlightCount) in flight + \(geometry.retainCount) \
            retained, of \(Quantity.bytes(geometry.slotByteCount))
            """)
        facts.add(
            "chunks",
            """
            \(Quantity.bytes(UInt64(geometry.chunkByteCount))), at most \
            \(Quantity.count(UInt64(geometry.chunkCapacity))) in a slot
            """)
        facts.add(
            "metadata region",
            "byte \(geometry.metadataOffset), \(geometry.metadataStride) bytes per slot")
        facts.add(
            "data region", "byte \(geometry.dataOffset), \(geometry.dataStride) bytes per slot")
        facts.add("file size", "\(geometry.fileByteCount) bytes")
        return ["\("identity block", .bold)"] + facts.lines(width: width)
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
            StyledText("intact, but its slot holds sequence \(found)", .yellow)
        case .differs(nil): StyledText("intact, but its slot holds something else", .yellow)
        default: StyledText("intact", .green)
        }
    }

    private func superblockLines(
        _ superblock: Superblock, _ inspection: Inspection, width: Int?
    ) -> [StyledText] {
        var facts = FactTable()
        let age = Quantity.age(of: superblock.commitTime, now: inspection.now)
        facts.add("generation", "\(superblock.generation)")
        facts.add("written", "\(Quantity.date(superblock.commitTime)), \(age)")
        facts.add("clean close", "\(superblock.isCleanClose ? "yes" : "no")")
        facts.add(
            "writer",
            """
            process \(superblock.writerPID) on boot \(superblock.writerBootID), \
            \(superblock.storageKind.name) storage
            """)
        if superblock.storageKind == .persistentMemory {
            facts.add("unsafe shutdowns", "\(superblock.unsafeShutdownCount)")
        }
        if let anchor = superblock.anchor {
            facts.add(
                "anchors", "step \(anchor.step), sequence \(anchor.sequence), slot \(anchor.slot)")
            facts.add("header digest", "\(anchor.headerDigest)")
        } else {
            facts.add("anchors", "nothing yet")
        }
        let retained = superblock.retained.map { "slot \($0.slot) (sequence \($0.sequence))" }
        facts.add("retains", "\(retained.isEmpty ? "—" : retained.joined(separator: ", "))")
        facts.add("parent digest", "\(superblock.parentDigest)")
        if inspection.decision.identity.isOfGroup {
            facts.add("attempt", "\(superblock.attempt)")
            facts.add(
                "durable on all ranks", "\(superblock.watermark.map { "\($0)" } ?? "nothing known")"
            )
        }
        return ["\("newest superblock", .bold)"] + facts.lines(width: width)
    }
}
