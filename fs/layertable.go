package fs

import (
	"fmt"
	"strconv"

	"github.com/imgfs/imgfs/imgsrc"
)

// A layerRow is one file of every layer's directory.
type layerRow struct {
	name string
	id   uint32 // as in row; 1 to 31
	doc  string

	body    func(f *imgsrc.Facts, n int) ([]byte, error) // a pure function of the image
	diffID  bool                                         // with body: see row.diffIDs
	content contentKind                                  // or bytes that the source has
	info    bool                                         // or info.json, which says what the source has
	diff    bool                                         // or diff/, the layer's files
	changes bool                                         // or what those do to the layers below
	bare    bool                                         // as in row
	sure    bool                                         // every image's layers have it, be it that it cannot be had
	title   bool                                         // or a link to the blob under the name that its manifest gives it
}

type contentKind uint8

const (
	contentNone contentKind = iota
	contentBlob
	contentDiff
	contentFiles
	contentOCI // a blob of oci/, whose number is in the place of the layer's
)

var layerTable = []layerRow{
	{name: "blob", id: 1, bare: true, content: contentBlob, doc: "exactly the bytes of the layer's digest, where the source has them"},
	{name: "diff.tar", id: 2, content: contentDiff, doc: "the uncompressed layer: sha256sum gives its diff id"},
	{name: "info.json", id: 3, sure: true, info: true, doc: "all that is known of the layer"},
	{name: "digest", id: 4, sure: true, bare: true, body: imgsrc.LayerDigest, doc: "the digest in the manifest"},
	{name: "diff-id", id: 5, sure: true, body: imgsrc.LayerDiffID, diffID: true, doc: "the digest of the uncompressed layer"},
	{name: "media-type", id: 6, sure: true, bare: true, body: imgsrc.LayerMediaType, doc: "the media type in the manifest"},
	{name: "size", id: 7, sure: true, bare: true, body: imgsrc.LayerSize, doc: "the size in the manifest, in bytes"},
	{name: "created-by", id: 8, body: imgsrc.LayerCreatedBy, doc: "the step that made it"},
	{name: "diff", id: 9, diff: true, doc: "the layer's own files; what it deletes is there as .wh.NAME"},
	{name: "changes", id: 10, changes: true, doc: "a line a path: A added, C changed, D deleted, against the layers below"},
}

// titleRow stands for the link; its name differs from layer to layer.
var titleRow = layerRow{id: 1<<layerShift - 1, title: true, bare: true}

// blobName is where it leads.
const blobName = "blob"

// title returns the name of an artifact's blob. Not ok if it has none, or one that would hide another file.
func (r *rendered) title(n int) (name string, ok bool) {
	if r.facts.Kind != imgsrc.KindArtifact {
		return "", false
	}
	name, ok = imgsrc.EscapeKey(r.facts.Layers[n].Title)
	for i := range layerTable {
		ok = ok && layerTable[i].name != name
	}
	return name, ok
}

// A layer's entries: its directory is (n+1)<<layerShift, its files come behind it by their ids.
const layerShift = 5

func layerEntry(n int, file uint32) uint32 { return uint32(n+1)<<layerShift | file }

// layerName is a layer's name: as many digits as the last one needs, two at least, so that ls sorts them.
func layerName(n, count int) string {
	return fmt.Sprintf("%0*d", max(2, len(strconv.Itoa(count-1))), n)
}
