internal import CheckpointFormat

/// What is to be written of one checkpoint: its files, and the index over them.
struct OutputPlan: Sendable {
    /// What a checkpoint is cut down to.
    struct Request: Sendable {
        var format: OutputFormat
        var path: String
        var choice = TensorFilter()
        /// pt: the tensors by name, not the state as it was saved.
        var isFlat = false
        /// Bytes of tensors per file.
        var shardByteCount: UInt64?
    }

    /// What a checkpoint offers.
    struct Source: Sendable {
        /// What an `.npz` file says of the checkpoint: its step, and what else names it.
        let name: [JSONValue.Member]
        let payloadByteCount: UInt64
        /// nil when there is none, or none that can be read.
        let manifest: SafetensorsManifest?
        /// The tensors to be written.
        let tensors: [SafetensorsManifest.Tensor]
        /// All tensors are written, and the manifest is the checkpoint's own.
        let isWhole: Bool
    }

    /// The nest that a `.pt` file holds.
    enum State: String, Sendable { case nested, flat }

    private(set) var files: [OutputFile] = []
    /// The index of shards and its path, when there is more than one file.
    private(set) var index: (path: String, bytes: [UInt8])?
    /// nil for formats other than pt.
    private(set) var state: State?
    /// Why a state that was saved as a nest is not written as one.
    private(set) var remark: String?

    /// - Throws: `invalidArgument` for an opaque payload that is asked for tensors; `corrupt` for
    ///   tensors that cannot be named in a new manifest.
    init(_ request: Request, _ source: Source) throws(CheckpointError) {
        let shards = Self.shards(source.tensors, byteCount: request.shardByteCount)
        guard let manifest = source.manifest else {
            precondition(request.format == .raw, "only bytes can be written without a manifest")
            addPayload(request, source)
            return
        }
        for (number, tensors) in shards.enumerated() {
            let path = Self.path(request.path, number: number, of: shards.count)
            switch request.format {
            case .raw where source.isWhole, .safetensors where source.isWhole && shards.count == 1:
                addPayload(request, source)
            case .raw: addRaw(path, manifest, tensors)
            case .safetensors:
                let isFirst = number == 0
                try addSafetensors(path, manifest, tensors, hasState: isFirst && !shards.isEmpty)
            case .npz: addNumpy(path, source, manifest, tensors)
            case .pt:
                addTorch(
                    path, manifest, tensors,
                    isNested: source.isWhole && !request.isFlat && shards.count == 1)
            }
            files[number].tensorNames = tensors.map(\.name)
            files[number].tensorByteCount = tensors.reduce(0) { $0 + UInt64($1.dataRange.count) }
        }
        if shards.count > 1 { index = Self.index(request.path, files) }
    }

    // MARK: Shards

    /// Cuts the tensors, in order, into runs of at most `byteCount`; a larger one stands alone.
    static func shards(
        _ tensors: [SafetensorsManifest.Tensor], byteCount limit: UInt64?
    ) -> [[SafetensorsManifest.Tensor]] {
        guard let limit else { return [tensors] }
        var shards: [[SafetensorsManifest.Tensor]] = [[]]
        var byteCount: UInt64 = 0
        for tensor in tensors {
            let size = UInt64(tensor.dataRange.count)
            if byteCount + size > limit, shards.last?.isEmpty == false {
                shards.append([])
                byteCount = 0
            }
            shards[shards.count - 1].append(tensor)
            byteCount += size
        }
        return shards
    }

    /// `model.safetensors` becomes `model-00002-of-00003.safetensors`.
    static func path(_ path: String, number: Int, of count: Int) -> String {
        if count == 1 { return path }
        let (stem, suffix) = split(path)
        return "\(stem)-\((number + 1).digits(5))-of-\(count.digits(5))\(suffix)"
    }

    /// The path without its suffix, and the suffix with its dot.
    private static func split(_ path: String) -> (stem: Substring, suffix: Substring) {
        let start = path.lastIndex(of: "/").map(path.index(after:)) ?? path.startIndex
        guard let dot = path[start...].lastIndex(of: "."), dot > start else {
            return (path[...], "")
        }
        return (path[..<dot], path[dot...])
    }

    /// The index file of Hugging Face: the size of all tensors, and which file holds which.
    private static func index(
        _ path: String, _ files: [OutputFile]
    ) -> (path: String, bytes: [UInt8]) {
        let total = files.reduce(0) { $0 + $1.tensorByteCount }
        let map = files.flatMap { file in
            let name = file.path.split(separator: "/").last.map(String.init) ?? file.path
            return file.tensorNames.map { JSONValue.Member(key: $0, value: .string(name)) }
        }
        let document = JSONValue.dictionary([
            "metadata": .dictionary(["total_size": .integer(total)]), "weight_map": .object(map),
        ])
        return ("\(path).index.json", document.bytes)
    }

    // MARK: Formats

    /// The payload as it is.
    private mutating func addPayload(_ request: Request, _ source: Source) {
        var file = OutputFile(path: request.path)
        file.append(payload: 0..<source.payloadByteCount)
        files.append(file)
    }

    /// The bytes of the tensors, one after another.
    private mutating func addRaw(
        _ path: String, _ manifest: SafetensorsManifest, _ tensors: [SafetensorsManifest.Tensor]
    ) {
        var file = OutputFile(path: path)
        for tensor in tensors { file.append(payload: manifest.payloadRange(of: tensor)) }
        files.append(file)
    }

    /// A safetensors file with a manifest of its own.
    ///
    /// - Parameter hasState: keep all of `__metadata__`; of a set of shards, the first does. The
    ///   others keep `format`, which loaders look for.
    private mutating func addSafetensors(
        _ path: String, _ manifest: SafetensorsManifest,
        _ tensors: [SafetensorsManifest.Tensor], hasState: Bool
    ) throws(CheckpointError) {
        var file = OutputFile(path: path)
        do throws(FormatError) {
            let encoded = try SafetensorsManifest.encode(
                tensors.map {
                    TensorDescription(
                        name: $0.name, elementType: $0.elementType, shape: $0.shape)
                }, metadata: manifest.metadata.filter { hasState || $0.key == "format" })
            file.append(encoded.bytes)
            for index in encoded.order {
                file.append(payload: manifest.payloadRange(of: tensors[index]))
            }
        } catch {
            throw CheckpointError(.corrupt, "the new manifest: \(error)")
        }
        files.append(file)
    }

    private mutating func addNumpy(
        _ path: String, _ source: Source, _ manifest: SafetensorsManifest,
        _ tensors: [SafetensorsManifest.Tensor]
    ) {
        var file = OutputFile(path: path, isArchive: true)
        for tensor in tensors {
            file.addMember(
                NumpyArchive.key(of: tensor.name) + ".npy",
                head: NumpyArchive.header(NumpyArchive.form(of: tensor)),
                payload: manifest.payloadRange(of: tensor), alignment: 64)
        }
        let note = Self.note(source.name, manifest, tensors)
        let form = NumpyArchive.Form(type: "|u1", shape: [UInt64(note.count)], isStandIn: false)
        file.addMember(
            NumpyArchive.noteKey + ".npy", head: NumpyArchive.header(form) + note, alignment: 64)
        files.append(file)
    }

    /// What an `.npz` file says of itself, in JSON.
    private static func note(
        _ name: [JSONValue.Member], _ manifest: SafetensorsManifest,
        _ tensors: [SafetensorsManifest.Tensor]
    ) -> [UInt8] {
        let metadata = manifest.metadata.map {
            JSONValue.Member(key: $0.key, value: .string($0.value))
        }
        let entries = tensors.map { tensor -> JSONValue in
            let form = NumpyArchive.form(of: tensor)
            return .dictionary([
                "key": .string(NumpyArchive.key(of: tensor.name)),
                "name": .string(tensor.name),
                "dtype": .string(tensor.elementType.name),
                "shape": .array(tensor.shape.map { .integer($0) }),
                "array_dtype": .string(form.type),
                "is_bit_pattern": .bool(form.isStandIn),
            ])
        }
        return JSONValue.document(
            tool: "pcextract",
            name + [
                .init(key: "metadata", value: .object(metadata)),
                .init(key: "tensors", value: .array(entries)),
            ]
        ).bytes
    }

    /// A file as `torch.save` writes it.
    private mutating func addTorch(
        _ path: String, _ manifest: SafetensorsManifest,
        _ tensors: [SafetensorsManifest.Tensor], isNested: Bool
    ) {
        state = .flat
        var pickle: [UInt8]?
        let document = manifest.metadata.first { $0.key == "pccheck.state" }?.value
        if isNested, let document {
            do throws(StateDocumentError) {
                pickle = try TorchPickle.nested(tensors, document: document)
                state = .nested
            } catch {
                remark =
                    "the state document cannot be put back: \(error.message); the tensors are "
                    + "written as one dictionary"
            }
        }
        // Order, names and alignment are those of torch 2.13.
        var file = OutputFile(path: path, isArchive: true)
        func add(_ name: String, _ bytes: [UInt8]) {
            file.addMember("archive/\(name)", head: bytes, alignment: 64)
        }
        add("data.pkl", pickle ?? TorchPickle.flat(tensors))
        add(".format_version", Array("1".utf8))
        add(".storage_alignment", Array("64".utf8))
        add("byteorder", Array("little".utf8))
        for (number, tensor) in tensors.enumerated() {
            file.addMember(
                "archive/data/\(number)", head: [], payload: manifest.payloadRange(of: tensor),
                alignment: 64)
        }
        add("version", Array("3\n".utf8))
        files.append(file)
    }
}

extension OutputPlan.Source {
    /// One checkpoint of a file.
    init(
        _ header: SlotHeader, manifest: SafetensorsManifest?,
        tensors: [SafetensorsManifest.Tensor], isWhole: Bool
    ) {
        self.init(
            name: [
                .init(key: "step", value: .integer(header.step)),
                .init(key: "sequence", value: .integer(header.sequence.rawValue)),
            ], payloadByteCount: header.payloadByteCount, manifest: manifest, tensors: tensors,
            isWhole: isWhole)
    }
}

/// Which tensors are wanted.
struct TensorFilter: Sendable {
    var patterns: [String] = []
    var exclusions: [String] = []

    var isAll: Bool { patterns.isEmpty && exclusions.isEmpty }

    /// Those that fit any pattern, or all when there is none, but for those that are excluded.
    func select(from manifest: SafetensorsManifest) -> [SafetensorsManifest.Tensor] {
        let unwanted = exclusions.map(Glob.init)
        return Manifest.select(patterns, from: manifest).filter { tensor in
            !unwanted.contains { $0.matches(tensor.name) }
        }
    }

    /// - Throws: `invalidArgument` when nothing is left.
    func selectSome(
        from manifest: SafetensorsManifest
    ) throws(CheckpointError) -> [SafetensorsManifest.Tensor] {
        let tensors = select(from: manifest)
        if tensors.isEmpty && !isAll {
            let names = manifest.tensors.prefix(3).map { "\"\($0.name)\"" }
            let wanted =
                patterns.isEmpty
                ? "every tensor is excluded"
                : "no tensor fits \(patterns.map { "'\($0)'" }.joined(separator: " or "))"
            throw CheckpointError(
                .invalidArgument,
                "\(wanted); the checkpoint has "
                    + "\(Quantity.plural(manifest.tensors.count, "tensor")), such as "
                    + "\(names.joined(separator: ", ")); see pcextract --list")
        }
        return tensors
    }
}
