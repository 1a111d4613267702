internal import ArgumentParser

/// The script with which a shell completes a tool's command line: ArgumentParser's, mended.
///
/// Three things are wrong in what ArgumentParser writes. It offers `help` as a subcommand of tools
/// that have none, which zsh refuses beside a list of files. Where a subcommand may be left out, it
/// does not offer the files that may then follow. And bash's script says that it is a program,
/// though it is only ever read by a shell.
enum CompletionScript {
    /// The script that these arguments ask for, as ArgumentParser spells the question.
    static func requested(
        by arguments: [String], of command: (some ParsableCommand).Type
    ) -> String? {
        guard arguments.count == 2, arguments[0] == "--generate-completion-script",
            let shell = CompletionShell(rawValue: arguments[1])
        else { return nil }
        let configuration = command.configuration
        let name = configuration.commandName ?? ""
        let script = command.completionScript(for: shell).cut(from: "#!/bin/bash\n", to: "")
        if configuration.subcommands.isEmpty {
            return withoutSubcommands(script, name, shell)
        }
        return configuration.defaultSubcommand == nil ? script : withFiles(script, name, shell)
    }

    private static func withoutSubcommands(
        _ script: String, _ name: String, _ shell: CompletionShell
    ) -> String {
        switch shell {
        case .bash:
            return script.cut(from: "    # Offer subcommand /", to: "complete -o", leaving: "}\n\n")
        case .zsh:
            return
                script
                .cut(from: "        '(-): :->command'\n", to: "    )\n")
                .cut(from: "    case \"${state}\" in\n", to: "    return \"${ret}\"\n")
                .cut(from: "_\(name)_help() {\n", to: "if [[ \"${funcstack[1]}\"")
        default:
            return script.split(separator: "\n", omittingEmptySubsequences: false)
                .filter { !$0.hasPrefix("complete ") || !$0.mentionsHelpCommand(of: name) }
                .joined(separator: "\n")
        }
    }

    private static func withFiles(
        _ script: String, _ name: String, _ shell: CompletionShell
    ) -> String {
        switch shell {
        case .bash:
            let offer = "        # Offer subcommand completions\n"
            return script.cut(
                from: offer, to: "        COMPREPLY", leaving: offer + files(ofBash: name))
        case .zsh:
            return script.cut(
                from: "        _describe -V subcommand subcommands && ret=0\n", to: "        ;;\n",
                leaving: "        _describe -V subcommand subcommands && ret=0\n"
                    + "        _files && ret=0\n")
        default:
            let isFirst = "__\(name)_should_offer_completions_for_positional \"\(name)\" -eq 1"
            return script + "\ncomplete -c '\(name)' -n '\(isFirst)' -F\n"
        }
    }

    private static func files(ofBash name: String) -> String {
        "        __\(name)_add_completions -f\n"
    }
}

extension StringProtocol {
    /// Whether a line of a fish script offers `help`, or completes behind it.
    fileprivate func mentionsHelpCommand(of name: String) -> Bool {
        contains(" -fa 'help' ") || contains("\"\(name) help ")
    }
}

extension String {
    /// Without the text from the first `start` to the `end` behind it, which stays.
    fileprivate func cut(from start: String, to end: String, leaving rest: String = "") -> String {
        guard let first = firstRange(of: start),
            let last = end.isEmpty
                ? first.upperBound..<first.upperBound
                : self[first.upperBound...].firstRange(of: end)
        else { return self }
        return self[..<first.lowerBound] + rest + self[last.lowerBound...]
    }
}
