internal import ArgumentParser

/// The kinds of file that pcextract writes.
enum OutputFormat: String, ExpressibleByArgument, CaseIterable, Sendable {
    case safetensors, raw, npz, pt

    /// The format that the name of a file asks for; nil when it asks for none.
    init?(suffixOf path: String) {
        let name = path.split(separator: "/").last ?? ""
        guard let dot = name.lastIndex(of: "."), dot != name.startIndex else { return nil }
        switch name[name.index(after: dot)...].lowercased() {
        case "safetensors": self = .safetensors
        case "npz": self = .npz
        // What torch.save is given, and what Hugging Face calls pytorch_model.bin.
        case "pt", "pth", "bin", "ckpt": self = .pt
        case "raw": self = .raw
        default: return nil
        }
    }

    /// Files of this format are zip archives.
    var isArchive: Bool { self == .npz || self == .pt }

    /// Whether a big checkpoint can be cut into several files with an index.
    var hasShards: Bool { self == .safetensors || self == .pt }
}
