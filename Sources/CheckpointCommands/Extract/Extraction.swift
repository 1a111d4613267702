internal import CheckpointFormat
internal import CheckpointRecovery

#if canImport(Glibc)
    internal import Glibc
#endif

/// One run of pcextract that writes: which checkpoints, and what is said of them.
struct Extraction {
    let command: ExtractCommand
    let inspection: Inspection
    let output: String

    // MARK: One checkpoint

    func one() throws(CheckpointError) -> ExitStatus {
        let target = try ExtractionTarget(output, source: inspection.path)
        if command.salvage { return try salvageOne(target) }
        var passed = lostNewest(from: inspection.decision.candidates.first)
        let result = try newestThatWorks(&passed) {
            selected throws(CheckpointError) -> ExtractionResult? in
            try extract(selected, to: target)
        }
        if let result { report([result], passed.all, [target.name]) }
        return passed.all.isEmpty ? .clean : .uncorrected
    }

    /// The newest durable checkpoint, when it is too damaged to be tried at all and `next` is taken
    /// in its place; reports it.
    private func lostNewest(from next: Candidate?) -> PassedOver {
        var passed = PassedOver("pcextract")
        if !command.choice.isPinned, let lost = inspection.lostNewest(from: next) {
            passed.add(lost)
        }
        return passed
    }

    private func salvageOne(_ target: ExtractionTarget) throws(CheckpointError) -> ExitStatus {
        let sources = SalvageSources(inspection, where: command.choice.accepts)
        guard let (source, selected) = try sources.next() else {
            throw SalvageSource.refusal(command.choice, inspection)
        }
        defer { selected.close() }
        let rejections = lostNewest(from: source.candidate).all
        let result = try salvage(source, selected, target, map: command.map)
        if let result { report([result], rejections, [target.name]) }
        let isWhole = rejections.isEmpty && result?.isIncomplete != true
        return isWhole ? .clean : .uncorrected
    }

    private func salvage(
        _ source: SalvageSource, _ selected: SelectedCheckpoint, _ target: ExtractionTarget,
        map: String?
    ) throws(CheckpointError) -> ExtractionResult? {
        let path = target.path ?? output
        let salvage = Salvage(
            request: command.request(path: path), treatment: command.holes ?? .skip,
            namesSlot: command.manifestFrom, mapPath: map ?? "\(path).holes.json",
            inspection: inspection)
        return try salvage.run(source, selected, to: target)
    }

    /// - Returns: nil when the reader of a stream had enough.
    private func extract(
        _ selected: SelectedCheckpoint, to target: ExtractionTarget
    ) throws(CheckpointError) -> ExtractionResult? {
        let request = command.request(path: target.path ?? output)
        let isBytes = request.format == .raw && request.choice.isAll
        let manifest = isBytes ? nil : try selected.tensorManifest()
        let plan = try OutputPlan(
            request,
            OutputPlan.Source(
                selected.candidate.header, manifest: manifest,
                tensors: try manifest.map { manifest throws(CheckpointError) in
                    try request.choice.selectSome(from: manifest)
                } ?? [], isWhole: request.choice.isAll))
        return try target.write(plan, from: selected)
            ? ExtractionResult(selected.candidate, request, plan) : nil
    }

    /// Gives the newest checkpoint that fits to `use`, then the next one when it is damaged and
    /// was not asked for by name.
    private func newestThatWorks<Value>(
        _ passed: inout PassedOver,
        _ use: (SelectedCheckpoint) throws(CheckpointError) -> Value
    ) throws(CheckpointError) -> Value {
        guard inspection.decision.candidates.contains(where: command.choice.accepts) else {
            throw command.choice.missing(inspection)
        }
        let load = inspection.search(proof: .demanded, where: command.choice.accepts)
        while true {
            let selected: SelectedCheckpoint
            do throws(CheckpointError) {
                selected = try load.next()
            } catch {
                if command.choice.isPinned, let first = load.rejections.first { throw first.error }
                passed.add(load.rejections, next: nil)
                throw load.rejections.isEmpty ? error : nothingWorks(error)
            }
            passed.add(load.rejections, next: selected.candidate)
            do throws(CheckpointError) {
                return try use(selected)
            } catch {
                try load.reject(error)
            }
        }
    }

    private func nothingWorks(_ error: CheckpointError) -> CheckpointError {
        guard error.code == .corrupt else { return error }
        return CheckpointError(
            .corrupt,
            "\(inspection.path): every checkpoint is damaged; run pcfsck --verify full "
                + "\(inspection.path), or extract what is left with --salvage")
    }

    // MARK: All checkpoints

    /// Writes every checkpoint to a file of its own; what is damaged does not keep the others
    /// from it. What a writer takes meanwhile is released for something newer, which is written.
    func all() throws(CheckpointError) -> ExitStatus {
        let sources = SalvageSources(inspection)
        var passed = PassedOver("pcextract")
        for lost in lostSlots(besides: sources) { passed.add(lost) }
        guard !sources.isEmpty else { throw command.choice.missing(inspection) }
        try makeDirectory()
        var results: [ExtractionResult] = []
        var names: [String] = []
        while let (source, selected) = try nextOfAll(sources, &passed) {
            defer { selected.close() }
            let name = name(of: source.candidate, among: sources, names)
            do throws(CheckpointError) {
                let target = try ExtractionTarget("\(output)/\(name)", source: inspection.path)
                guard let result = try write(source, selected, to: target) else { continue }
                results.append(result)
                names.append(target.name)
            } catch {
                try sources.reject(error)
                if error.code != .busy { passed.add(source.candidate, error) }
            }
        }
        if results.isEmpty && passed.all.isEmpty { throw command.choice.missing(inspection) }
        report(results, passed.all, names)
        let isDamaged = !passed.all.isEmpty || results.contains(where: \.isIncomplete)
        return isDamaged ? .uncorrected : .clean
    }

    /// The next checkpoint to write.
    private func nextOfAll(
        _ sources: SalvageSources, _ passed: inout PassedOver
    ) throws(CheckpointError) -> (SalvageSource, SelectedCheckpoint)? {
        let next = try sources.next(proof: command.salvage ? .waived : .demanded)
        passed.add(sources.rejections, next: nil)
        return next
    }

    /// Slots that are too damaged to be tried at all.
    private func lostSlots(besides sources: SalvageSources) -> [ExtractionRejection] {
        inspection.decision.slots.filter {
            $0.reason.isDamage && !$0.reason.isUsable && !sources.knows($0.slot)
        }.map { report in
            let why = report.detail.map { ": \($0)" } ?? ""
            return ExtractionRejection(
                slot: report.slot, step: report.usedHeader?.step,
                message: "slot \(report.slot) is \(report.reason.rawValue)\(why)")
        }
    }

    private func write(
        _ source: SalvageSource, _ selected: SelectedCheckpoint, to target: ExtractionTarget
    ) throws(CheckpointError) -> ExtractionResult? {
        if command.salvage { return try salvage(source, selected, target, map: nil) }
        guard !source.isTableDamaged else {
            throw CheckpointError(
                .corrupt,
                "slot \(source.candidate.slot): the chunk table of step \(source.candidate.step) "
                    + "is damaged; --salvage extracts what is left", slot: source.candidate.slot)
        }
        return try extract(selected, to: target)
    }

    /// `step-120.safetensors`; with the sequence when a step is there twice.
    private func name(
        of candidate: Candidate, among sources: SalvageSources, _ names: [String]
    ) -> String {
        let suffix = command.chosenFormat.rawValue
        let plain = "step-\(candidate.step).\(suffix)"
        let isAlone = sources.count(ofStep: candidate.step) < 2 && !names.contains(plain)
        return isAlone ? plain : "step-\(candidate.step)-sequence-\(candidate.sequence).\(suffix)"
    }

    private func makeDirectory() throws(CheckpointError) {
        // Safe: the path is passed as a C string.
        guard unsafe mkdir(output, 0o777) != 0, errno != EEXIST else { return }
        let number = errno
        throw CheckpointError(
            .outputFailed, "\(output): \(SystemMessage.text(number))", osErrorNumber: number)
    }

    // MARK: What is said

    private func report(
        _ results: [ExtractionResult], _ rejections: [ExtractionRejection], _ names: [String]
    ) {
        if command.json {
            Output.standard.document(
                "pcextract",
                [
                    "action": .string("extract"),
                    "file": InspectionJSON.file(inspection),
                    "output": .string(output),
                    "checkpoints": .array(results.map { $0.json() }),
                    "rejected": .array(rejections.map { $0.json() }),
                ])
            return
        }
        if command.all { return reportAll(results, rejections, names) }
        let output = Output.diagnostics
        for (result, name) in zip(results, names)
        where !command.quiet || result.isIncomplete || result.remark != nil {
            result.lines(name: name).forEach(output.line)
        }
    }

    private func reportAll(
        _ results: [ExtractionResult], _ rejections: [ExtractionRejection], _ names: [String]
    ) {
        let output = Output.diagnostics
        var table = TableLayout(ExtractionResult.columns)
        for (result, name) in zip(results, names) { table.add(result.row(name: name)) }
        if !command.quiet { output.show(table.lines(width:)) }
        for result in results where result.isIncomplete || result.remark != nil {
            output.line("\("step \(result.candidate.step)", .bold)")
            result.details.forEach { output.line("  \($0)") }
        }
        if command.quiet { return }
        let total = results.reduce(0) { $0 + $1.byteCount }
        let lost =
            rejections.isEmpty
            ? "" : ", \(Quantity.plural(rejections.count, "slot")) could not be written"
        output.line(
            """
            \("\(Quantity.plural(results.count, "checkpoint"))", .bold) in \(self.output), \
            \(Quantity.bytes(total))\(lost)
            """)
    }
}
