import Foundation

/// The project's own files, found from where this source lies.
enum Repository {
    static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent()

    /// Paths relative to the root, of files below `folder` whose names end in one of `endings`.
    static func files(_ folder: String, _ endings: [String]) -> [String] {
        let base = root.appendingPathComponent(folder)
        let names = FileManager.default.enumerator(atPath: base.path)?.compactMap { $0 as? String }
        return (names ?? []).sorted()
            .filter { name in
                endings.contains { name.hasSuffix($0) } && !name.hasPrefix(".")
                    && !name.contains("/.")
            }
            .map { "\(folder)/\($0)" }
    }

    static func lines(_ path: String) throws -> [String] {
        try String(contentsOf: root.appendingPathComponent(path), encoding: .utf8)
            .components(separatedBy: "\n")
    }

    static func text(_ path: String) throws -> String {
        try String(contentsOf: root.appendingPathComponent(path), encoding: .utf8)
    }
}
