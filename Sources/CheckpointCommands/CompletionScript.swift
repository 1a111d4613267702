internal import ArgumentParser

/// The script with which a shell completes a tool's command line: ArgumentParser's, fixed.
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
        return commandsWithDefault(configuration, [name]).reduce(script) {
            withFiles($0, $1, shell)
        }
    }

    /// The commands whose subcommand may be left out, by the words that call them.
    private static func commandsWithDefault(
        _ configuration: CommandConfiguration, _ words: [String]
    ) -> [[String]] {
        let below = configuration.subcommands.flatMap { command in
            let configuration = command.configuration
            return commandsWithDefault(configuration, words + [configuration.commandName ?? ""])
        }
        return (configuration.defaultSubcommand == nil ? [] : [words]) + below
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
        _ script: String, _ words: [String], _ shell: CompletionShell
    ) -> String {
        let function = "_" + words.joined(separator: "_") + "() {\n"
        switch shell {
        case .bash:
            let offer = "        # Offer subcommand completions\n"
            return script.cut(
                behind: function, from: offer, to: "        COMPREPLY",
                leaving: "\(offer)        __\(words[0])_add_completions -f\n")
        case .zsh:
            let offer = "        _describe -V subcommand subcommands && ret=0\n"
            return script.cut(
                behind: function, from: offer, to: "        ;;\n",
                leaving: "\(offer)        _files && ret=0\n")
        default:
            let isFirst =
                "__\(words[0])_should_offer_completions_for_positional "
                + "\"\(words.joined(separator: " "))\" -eq 1"
            return script + "\ncomplete -c '\(words[0])' -n '\(isFirst)' -F\n"
        }
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
    ///
    /// - Parameter head: what is before `start`, not always directly.
    fileprivate func cut(
        behind head: String = "", from start: String, to end: String, leaving rest: String = ""
    ) -> String {
        guard let above = head.isEmpty ? startIndex..<startIndex : firstRange(of: head),
            let first = self[above.upperBound...].firstRange(of: start),
            let last = end.isEmpty
                ? first.upperBound..<first.upperBound
                : self[first.upperBound...].firstRange(of: end)
        else { return self }
        return self[..<first.lowerBound] + rest + self[last.lowerBound...]
    }
}
