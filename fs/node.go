package fs

// A node is a FUSE node id. It says where the node stands, so that nothing has to be remembered about nodes that the
// kernel knows, and a FORGET needs no answer:
//
//	63        40 39      24 23        0
//	+-----------+----------+-----------+
//	| image     | view     | entry     |
//	+-----------+----------+-----------+
//
// image is a number that this mount gave to an image when it first met it; 0 is what lies above the images. view is a
// part of the tree with tables of its own; what an entry means is the view's business.
type node uint64

const (
	entryBits = 24
	viewBits  = 16
	maxEntry  = 1<<entryBits - 1
)

// The views above the images (image 0).
const (
	viewTop         = iota // the mountpoint's own files; entry 1 is the root, as FUSE wants it
	viewNames              // directories below images/; entry: an interned path
	viewLinks              // links below images/; entry: an interned path and target
	viewIDLinks            // links in ids/ that are not listed; entry: an interned name and target
	viewRemoteNames        // directories below registry/, as viewNames
	viewRemoteLinks        // links below registry/, as viewLinks
	viewJobs               // jobs/ (entry 0) and its files; entry: the job's number
)

const (
	viewOCI      = 7 // oci/ and what has a name of its own in it: see ociRoot
	viewOCIBlobs = 8 // its blobs; entry: a number
)

// The views of an image.
const (
	viewImage       = iota // the image's directory (entry 0) and its files (entry: the row's id)
	viewAnnotations        // annotations/ (entry 0) and its files, in the order of their keys
	viewLabels             // labels/, likewise
	viewManifests          // manifest-sha256-<hex>.json; entry: 1 + the manifest's place in image.others
	viewLayers             // layers/ (entry 0) and its directories: see layerEntry
	viewRootfs             // rootfs/ (entry 0); entry: the node of the merged tree
	viewPlatforms          // platforms/ (entry 0) and its links; entry: an interned name and target
	viewReferrers          // referrers/, likewise
	viewExport             // export/ (entry 0) and its files: see exportView
)

// firstDiff is the view of layers/00/diff/; the others follow it. entry: the node of the layer's tree.
const firstDiff = 16

func diffView(layer int) uint16 { return uint16(firstDiff + layer) }

// maxDiffs is how many layers of an image have a diff/.
const maxDiffs = 1<<viewBits - firstDiff

const rootNode = node(1)

func makeNode(image uint32, view uint16, entry uint32) node {
	return node(image)<<(entryBits+viewBits) | node(view)<<entryBits | node(entry&maxEntry)
}

func (n node) image() uint32 { return uint32(n >> (entryBits + viewBits)) }
func (n node) view() uint16  { return uint16(n >> entryBits) }
func (n node) entry() uint32 { return uint32(n) & maxEntry }

// An inode number (st_ino) is a hash of the place, not the node id: it is the same on every machine and in every mount,
// as rsync and tar expect of a copy's source. 0, 1 and all ones mean something to FUSE and to old programs.
type ino uint64

const topSeed = ino(0x696d67667300) // "imgfs"

// under returns the inode number of the thing called name below the one numbered i.
func (i ino) under(name string) ino {
	h := uint64(i) ^ 0xcbf29ce484222325
	for k := range len(name) {
		h = (h ^ uint64(name[k])) * 0x100000001b3
	}
	return ino(h).mixed()
}

// nth returns the inode number of the nth thing below the one numbered i.
func (i ino) nth(n uint64) ino {
	return (i + ino(n+1)*0x9e3779b97f4a7c15).mixed()
}

// mixed spreads the bits (the finaliser of splitmix64) and keeps off the reserved numbers.
func (i ino) mixed() ino {
	h := uint64(i)
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	h ^= h >> 31
	if h <= 1 || h == ^uint64(0) {
		return 2
	}
	return ino(h)
}
