/// The media that a power cut can leave in persistent memory: of the writes that no fence had
/// covered, any of the eight-byte words, whatever cache line was evicted when.
///
/// All subsets of the words that change are tried while there are few; else subsets at random.
package struct StoreStates {
    /// One word that may be old or new.
    private struct Word {
        let offset: Int
        let old: [UInt8]
        let new: [UInt8]
    }

    private let words: [Word]
    private let exhaustiveLimit: Int

    /// - Parameter exhaustiveLimit: up to so many words, all subsets are tried.
    package init(
        _ recording: Recording, at point: Recording.CrashPoint, image: MemoryStorage,
        exhaustiveLimit: Int
    ) {
        self.exhaustiveLimit = exhaustiveLimit
        words = point.pending.flatMap { index in
            let write = recording.writes[index]
            return stride(from: 0, to: write.bytes.count, by: 8).compactMap { start in
                let new = Array(write.bytes[start..<start + 8])
                let offset = write.offset + start
                let old = image.bytes(in: offset..<offset + 8)
                return old == new ? nil : Word(offset: offset, old: old, new: new)
            }
        }
    }

    package var wordCount: Int { words.count }
    package var isExhaustive: Bool { words.count <= exhaustiveLimit }

    /// Puts each state into `image` in turn, which has all words old again afterwards; stops when
    /// `body` returns false.
    package func forEach(
        in image: MemoryStorage, sampleCount: Int, seed: UInt64, _ body: () -> Bool
    ) {
        defer { for word in words { put(word, isNew: false, image) } }
        if isExhaustive {
            // A Gray code: each state differs from the last one in one word.
            for number in 0..<(1 << words.count) {
                let bit = number.trailingZeroBitCount
                if number > 0 {
                    put(words[bit], isNew: (number ^ number >> 1) >> bit & 1 == 1, image)
                }
                guard body() else { return }
            }
            return
        }
        var random = SplitMix64(seed: seed)
        for _ in 0..<sampleCount {
            sample(image, &random)
            guard body() else { return }
        }
    }

    /// Words one by one, whole cache lines, or a beginning: with few or with many of them new.
    private func sample(_ image: MemoryStorage, _ random: inout SplitMix64) {
        let grain = [8, 64, 4096].randomElement(using: &random) ?? 8
        let share = random.next() % 9
        var isNew = false
        var place = -1
        for word in words {
            if word.offset / grain != place {
                place = word.offset / grain
                isNew = random.next() % 8 < share
            }
            put(word, isNew: isNew, image)
        }
    }

    private func put(_ word: Word, isNew: Bool, _ image: MemoryStorage) {
        image.overwrite(isNew ? word.new : word.old, at: UInt64(word.offset))
    }
}
