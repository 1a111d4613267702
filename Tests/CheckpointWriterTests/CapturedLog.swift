import CheckpointStorage
import Logging

/// Keeps what was logged.
final class CapturedLog: LogHandler {
    private let lines = Monitor([(level: Logger.Level, text: String)]())

    var logger: Logger { Logger(label: "test") { [self] _ in self } }

    var metadata: Logger.Metadata {
        get { [:] }
        set {}
    }
    var logLevel: Logger.Level {
        get { .trace }
        set {}
    }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { nil }
        set {}
    }

    func log(event: LogEvent) {
        let line = (event.level, "\(event.message)")
        lines.withLock { $0.append(line) }
    }

    func has(_ level: Logger.Level, _ part: String) -> Bool {
        lines.withLock { $0.contains { $0.level == level && $0.text.contains(part) } }
    }
}
