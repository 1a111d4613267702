/// Writes the opcodes of Python's pickle, protocol 2: only those that `torch.load` allows with
/// `weights_only=True`.
struct PickleWriter {
    private enum Opcode {
        static let proto: UInt8 = 0x80
        static let stop = UInt8(ascii: ".")
        static let mark = UInt8(ascii: "(")
        static let none = UInt8(ascii: "N")
        static let newTrue: UInt8 = 0x88
        static let newFalse: UInt8 = 0x89
        static let integer1 = UInt8(ascii: "K")
        static let integer2 = UInt8(ascii: "M")
        static let integer4 = UInt8(ascii: "J")
        static let long1: UInt8 = 0x8A
        static let float = UInt8(ascii: "G")
        static let unicode = UInt8(ascii: "X")
        static let emptyTuple = UInt8(ascii: ")")
        static let emptyList = UInt8(ascii: "]")
        static let emptyDictionary = UInt8(ascii: "}")
        static let tuple = UInt8(ascii: "t")
        static let tuple1: UInt8 = 0x85
        static let tuple2: UInt8 = 0x86
        static let appends = UInt8(ascii: "e")
        static let setItem = UInt8(ascii: "s")
        static let setItems = UInt8(ascii: "u")
        static let global = UInt8(ascii: "c")
        static let reduce = UInt8(ascii: "R")
        static let build = UInt8(ascii: "b")
        static let persistentID = UInt8(ascii: "Q")
        static let put1 = UInt8(ascii: "q")
        static let put4 = UInt8(ascii: "r")
        static let get1 = UInt8(ascii: "h")
        static let get4 = UInt8(ascii: "j")
    }

    private(set) var bytes: [UInt8] = [Opcode.proto, 2]
    private var memoCount: UInt32 = 0
    private var globals: [String: UInt32] = [:]

    /// The longest integer that the opcode holds.
    static let longByteCountMaximum = 255

    // MARK: Values

    mutating func none() { bytes.append(Opcode.none) }
    mutating func bool(_ value: Bool) {
        bytes.append(value ? Opcode.newTrue : Opcode.newFalse)
    }

    mutating func integer(_ value: Int64) {
        if let small = UInt8(exactly: value) {
            bytes += [Opcode.integer1, small]
        } else if let middle = UInt16(exactly: value) {
            bytes.append(Opcode.integer2)
            bytes.appendLittleEndian(middle)
        } else if let large = Int32(exactly: value) {
            bytes.append(Opcode.integer4)
            bytes.appendLittleEndian(large)
        } else {
            bytes += [Opcode.long1, 8]
            bytes.appendLittleEndian(value)
        }
    }

    mutating func integer(_ value: UInt64) {
        if let signed = Int64(exactly: value) { return integer(signed) }
        bytes += [Opcode.long1, 9]
        bytes.appendLittleEndian(value)
        bytes.append(0)
    }

    /// - Parameter twosComplement: lowest byte first, at most `longByteCountMaximum`.
    mutating func integer(twosComplement: [UInt8]) {
        precondition(twosComplement.count <= Self.longByteCountMaximum, "fits one byte of length")
        bytes += [Opcode.long1, UInt8(twosComplement.count)] + twosComplement
    }

    mutating func float(_ value: Double) {
        bytes.append(Opcode.float)
        bytes.appendLittleEndian(value.bitPattern.byteSwapped)
    }

    mutating func string(_ utf8: [UInt8]) {
        bytes.append(Opcode.unicode)
        bytes.appendLittleEndian(UInt32(utf8.count))
        bytes += utf8
    }
    mutating func string(_ text: String) { string(Array(text.utf8)) }

    // MARK: Containers

    mutating func mark() { bytes.append(Opcode.mark) }
    mutating func emptyTuple() { bytes.append(Opcode.emptyTuple) }
    mutating func emptyList() { bytes.append(Opcode.emptyList) }
    mutating func emptyDictionary() { bytes.append(Opcode.emptyDictionary) }
    /// A tuple of what came since the mark.
    mutating func tuple() { bytes.append(Opcode.tuple) }
    /// A tuple of the last value, or the last two.
    mutating func tuple1() { bytes.append(Opcode.tuple1) }
    mutating func tuple2() { bytes.append(Opcode.tuple2) }
    /// Appends what came since the mark to the list before it.
    mutating func appends() { bytes.append(Opcode.appends) }
    /// Sets one item, or the pairs since the mark, in the dictionary before it.
    mutating func setItem() { bytes.append(Opcode.setItem) }
    mutating func setItems() { bytes.append(Opcode.setItems) }

    mutating func tuple(_ values: [UInt64]) {
        if values.isEmpty { return emptyTuple() }
        mark()
        for value in values { integer(value) }
        tuple()
    }

    // MARK: Objects

    /// A name of a module. Both are ours: text from a file never becomes one.
    mutating func global(_ module: String, _ name: String) {
        let path = "\(module)\n\(name)\n"
        if let known = globals[path] { return get(known) }
        bytes.append(Opcode.global)
        bytes += Array(path.utf8)
        globals[path] = put()
    }

    /// Calls the function before the tuple of its arguments.
    mutating func reduce() { bytes.append(Opcode.reduce) }
    /// Gives the object the attributes in the dictionary behind it.
    mutating func build() { bytes.append(Opcode.build) }
    /// Replaces the tuple by the storage that it names.
    mutating func persistentID() { bytes.append(Opcode.persistentID) }

    /// Remembers the last value.
    mutating func put() -> UInt32 {
        let number = memoCount
        memoCount += 1
        if let short = UInt8(exactly: number) {
            bytes += [Opcode.put1, short]
        } else {
            bytes.append(Opcode.put4)
            bytes.appendLittleEndian(number)
        }
        return number
    }

    /// The very object that was remembered.
    mutating func get(_ number: UInt32) {
        if let short = UInt8(exactly: number) {
            bytes += [Opcode.get1, short]
        } else {
            bytes.append(Opcode.get4)
            bytes.appendLittleEndian(number)
        }
    }

    mutating func stop() { bytes.append(Opcode.stop) }
}
