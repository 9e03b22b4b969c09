// Package inflate decompresses gzip streams (RFC 1951, RFC 1952), faster than the libraries do it in Go: what a compressed
// layer costs its first reader is mostly this.
//
// It reads ahead of what it decodes, in large pieces. Codes are looked up in tables of two levels, several literals to
// each refill of a 64-bit buffer, and the output goes straight into a window of half a MiB that is read from in turn. A
// careful loop does the same near the end of either.
//
// What must hold: no bytes but those that the stream says, io.EOF only after each member's CRC-32 and length were right,
// and an error, not a panic, for anything that is not a gzip stream. A Reader takes 800 KiB.
package inflate
