// Package layer is what a layer is once its bytes are at hand: the tar index, the merge of several layers, and random
// access to what they hold. It knows nothing of FUSE, of stores or of registries: a layer comes to it as an io.Reader of
// the blob, and leaves it as an imgsrc.Content.
//
// # Compression
//
// Compression is told by the bytes and never by the media type, because media types lie: archives made by docker save
// call uncompressed layers gzip. Decompress understands gzip of several members, bzip2, xz and zstd of several streams
// or frames; anything else is taken to be uncompressed. What a decompressor may allocate is bounded (128 MiB of window).
//
// # The cache
//
// Random access to a compressed layer needs its uncompressed bytes, so a Cache decompresses a layer once into a file,
// which every mount and every process of the user then shares. What must hold:
//
//   - No byte is returned that was not verified. A pass over a blob hashes what goes in (the blob's digest) and what
//     comes out (the diff id, where it is known); readers wait until both are right. Afterwards every chunk read from a
//     cache file is compared with the checksum that the pass recorded, so a file that was cut short or edited is
//     noticed, thrown away and made again.
//   - A pass runs on the cache's own context. A reader whose context ends leaves at once, and the work goes on for the
//     next one. Several readers of one layer wait for one pass, also across processes.
//   - A cache that cannot be written (read-only, full, somebody else's) never fails a read: the layer then goes to a
//     temporary file without a name, and where there is no room for that either, it is decompressed again as it is read.
//   - The directory may be deleted at any time, as a whole or in part, by anybody: files that are open stay readable,
//     and everything else is made again.
//   - A blob that expands without end fails with imgsrc.ErrDamaged: beyond 16 GiB the output may be at most 500 times
//     what was read (deflate can reach 1,032). Before a file system is full to the last byte, writing stops: a
//     twentieth of it, at most 1 GiB, is left free.
//
// # Files
//
// Below the directory that OpenCache is given:
//
//	v1/diff/<algorithm>/<hex>         an uncompressed layer, by its diff id
//	v1/blob/<algorithm>/<hex>         one whose diff id nobody knew, by the digest of the compressed blob
//	v1/part/<kind>-<algorithm>-<hex>  one that is being made
//
// The format is append-only: these names keep their meaning for good, and another format goes to another directory
// beside v1, which older programs leave alone.
//
// A finished file is the layer's bytes, from offset 0, and after them a trailer: the CRC-32C of every chunk of 1 MiB
// (four bytes each, little endian), the eight bytes "imgfs-d1", the layer's length (eight bytes, little endian), and
// the CRC-32C of "<kind>/<algorithm>/<hex>" and of all of the trailer before it (four bytes). A file under another name
// than its own is therefore no valid file. The modification time is when the file was last opened: the oldest is
// evicted first when the files together pass the limit. Whoever reads a file holds a shared flock on it, and nothing
// that is locked is evicted.
//
// A part file is written under an exclusive flock and renamed into place, so there are no lock files that could be left
// behind: a part file that nobody has locked belongs to a process that died, and the next OpenCache removes it.
package layer
