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
// # Trees
//
// Files are listed from headers and never by unpacking. An imgsrc.Files gives the entries of a layer in the order of its
// tar: TarFiles from an uncompressed tar, seeking from header to header, and other backends from whatever they have
// instead of one. BuildIndex makes of them what unpacking the layer into an empty directory would leave: an Index, flat
// tables without pointers, some 72 bytes and its name for a file. Merge makes of several indexes what overlayfs shows of
// them: a Tree, 20 bytes a file over the indexes, decided from the headers alone (the rules stand there). Changes lists
// what one layer does to those below it. All three are pure functions of their input, and a tree's numbers are always
// the same for the same layers, so that whoever keeps them can throw trees away and make them again.
//
// Cache.Index makes each index once for all who want it, on the cache's own context, and keeps it in memory while anybody
// has it, in a file for good.
//
// What an index may take is bounded by what its layer has: a path by what a system call takes, the directories that no
// entry names by the number of entries, all of it by MaxEntries. Entries whose names or paths no kernel takes are left
// out, and the log says how many. Several indexes are made at a time, but those of more than some 300,000 files one by
// one.
//
// # Tables of contents
//
// An eStargz or zstd:chunked layer ends with a table of contents, and its files are compressed in chunks of their own, each
// with its digest. A TOCRef reads the table from a blob of which only ranges are at hand, and verifies it against what the
// manifest says of it; its entries are emitted as those of a tar are, so that index and merge are the same code, and the
// Chunks say where in the blob a body lies and verify what is unpacked from there. A table without a digest in the manifest
// is not used, nor one that leaves something open: names that are not UTF-8 (JSON has them otherwise), chunks without a
// sha256 digest or of more than 64 MiB, more than 1 GiB of JSON (two million files and more). It is unpacked while it is gone
// through: what is in memory is the chunks. What such a table says less than the tar are parts of seconds, with eStargz.
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
//   - What a pass has found out is kept when the bytes are evicted: their number, and a tag of every chunk, which nobody
//     can forge who cannot read the cache (tags.go). The next pass over the same layer is then read from as it goes, each
//     chunk as soon as it is there and has its tag.
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
//	v1/tags-diff/..., v1/tags-blob/...   what is known of such a layer, also when it has been evicted
//	v1/index-<form>/<algorithm>/<hex> an index, by its imgsrc.FilesKey: the layer's digest, or if there is a Place the
//	                                  sha256 of the digest, a space and the Place
//	v1/part/<kind>-<algorithm>-<hex>  a file that is being made; fetched-... is registry's, and is gone on with later
//
// Other directories there are other packages' (registry's blobs, and parts of blobs): they count, by what they occupy on the
// disk, and are evicted as these are.
//
// The format is append-only: these names keep their meaning for good, and another format goes to another directory
// beside v1, which older programs leave alone. v1/sums-diff and v1/sums-blob are earlier programs': checksums in place of
// the tags, which are not believed any more.
//
// A finished file is the layer's bytes, from offset 0, and after them a trailer: the CRC-32C of every chunk of 1 MiB
// (four bytes each, little endian), the eight bytes "imgfs-d1", the layer's length (eight bytes, little endian), and
// the CRC-32C of "<kind>/<algorithm>/<hex>" and of all of the trailer before it (four bytes). A file under another name
// than its own is therefore no valid file.
//
// A file of tags is a random key of 16 bytes, the tags of the chunks (16 bytes each: the GMAC, with AES-128 and a nonce
// of the chunk's number in eight bytes, little endian, and four zeros), the eight bytes "imgfs-t1", the layer's length,
// and a CRC-32C as above.
//
// An index file is the eight bytes "imgfs-i2", four numbers of four bytes (entries, inodes, bytes of the arena, entries left
// out), these tables with their fields in the order in which ent and inode have them, and the CRC-32C of its path and
// of all that. All numbers are little endian.
//
// The modification time is when the file was last opened: the oldest is
// evicted first when the files together pass the limit, layers before what is known of them. Whoever reads a file holds a shared flock on it, and nothing
// that is locked is evicted.
//
// A part file is written under an exclusive flock and renamed into place, so there are no lock files that could be left
// behind: a part file that nobody has locked belongs to a process that died, and the next OpenCache removes it;
// but for those that somebody goes on with (ResumedPrefix), which stay for a week.
package layer
