internal import ArgumentParser
internal import CheckpointFormat
internal import CheckpointWriter

#if canImport(Glibc)
    internal import Glibc
#endif

/// The command-line tools.
public enum Tool: String, CaseIterable, Sendable {
    case pcfsck, pcinspect, pcextract, pccheck

    static let version = PCcheck.version

    private var command: any ParsableCommand.Type {
        switch self {
        case .pcfsck: FsckCommand.self
        case .pcinspect: InspectCommand.self
        case .pcextract: ExtractCommand.self
        case .pccheck: PCcheckCommand.self
        }
    }

    /// The tool that the program's path names, or `pccheck` under any other name.
    public static func named(by path: String) -> Tool {
        path.split(separator: "/").last.flatMap { Tool(rawValue: String($0)) } ?? .pccheck
    }

    /// Runs the tool with the process's arguments and exits with its status.
    public func run() -> Never {
        // A reader that closes a pipe shows as EPIPE, which `Output` takes for the end.
        _ = signal(SIGPIPE, SIG_IGN)
        // A limit on the size of files shows as EFBIG.
        _ = signal(SIGXFSZ, SIG_IGN)
        Interruption.install()
        let arguments = Array(CommandLine.arguments.dropFirst())
        var status = refuseUnreadableArguments()
        if status.isEmpty { status = execute(arguments) }
        Output.standard.flush()
        if Output.standard.errorNumber != 0 {
            let error = CheckpointError(
                .inputOutput,
                "standard output: \(SystemMessage.text(Output.standard.errorNumber))")
            status.insert(described(by: arguments).report(error))
        }
        Output.diagnostics.flush()
        exit(status.rawValue)
    }

    /// Swift replaces what is not UTF-8 in an argument, which would then name another file.
    private func refuseUnreadableArguments() -> ExitStatus {
        for index in 1..<max(1, Int(CommandLine.argc)) {
            // Safe: argc pointers to C strings, which nobody changes.
            guard let argument = unsafe CommandLine.unsafeArgv[index],
                unsafe String(validatingCString: argument) == nil
            else { continue }
            let text = PrintableText.escaped(unsafe String(cString: argument))
            return report(
                CheckpointError(
                    .invalidArgument,
                    "argument \(index) is not UTF-8: \(text); rename the file, or give it a "
                        + "symbolic link with another name"))
        }
        return .clean
    }

    /// The tool whose manual page describes these arguments: `pccheck fsck` is pcfsck(1).
    private func described(by arguments: [String]) -> Tool {
        guard self == .pccheck, let name = arguments.first else { return self }
        return Tool(rawValue: "pc\(name)") ?? self
    }

    private func execute(_ arguments: [String]) -> ExitStatus {
        if self == .pccheck, arguments.first == "convert" {
            return report(
                CheckpointError(
                    .invalidArgument,
                    "convert is a command of the Python package, because the formats that it reads "
                        + "are Python's: install that, and use python -m pccheck convert"))
        }
        func execute(_ root: (some ParsableCommand).Type) -> ExitStatus {
            if let script = CompletionScript.requested(by: arguments, of: root) {
                Output.standard.write(Array(script.utf8))
                return .clean
            }
            do {
                var command = try root.parseAsRoot(arguments)
                if let command = command as? any ToolCommand { return try command.execute() }
                try command.run()
                return .clean
            } catch let error as CheckpointError {
                return described(by: arguments).report(error)
            } catch {
                let isHelp = root.exitCode(for: error) == .success
                let message = root.fullMessage(for: error)
                (isHelp ? Output.standard : Output.diagnostics).write(Array((message + "\n").utf8))
                return isHelp ? .clean : .usage
            }
        }
        return execute(command)
    }

    /// Says what went wrong on standard error.
    private func report(_ error: CheckpointError) -> ExitStatus {
        if error.code == .cancelled {
            Output.diagnostics.line("\(rawValue): \(error.message)")
        } else {
            Output.diagnostics.line("\("\(rawValue):", .red) \(error.message)")
        }
        return ExitStatus(error.code)
    }
}

/// A command that ends with a status of fsck(8).
protocol ToolCommand: ParsableCommand {
    /// - Throws: `CheckpointError`, which is reported; others are usage errors.
    func execute() throws -> ExitStatus
}

extension ExitStatus {
    init(_ code: CheckpointError.Code) {
        switch code {
        case .cancelled: self = .cancelled
        case .corrupt: self = .uncorrected
        case .invalidArgument: self = .usage
        default: self = .operational
        }
    }
}

extension CheckpointError.Code {
    /// SIGINT or SIGTERM came. Never leaves the tools.
    static let cancelled = CheckpointError.Code(rawValue: -1)
}

/// What the system says of an errno.
enum SystemMessage {
    static func text(_ errorNumber: Int32) -> String {
        // Safe: strerror returns a C string, which is copied before another call.
        unsafe String(cString: strerror(errorNumber))
    }
}
