package layer

import (
	"path"
	"strings"

	"github.com/imgfs/imgfs/imgsrc"
)

// An eStargz layer is a tar that ends with a table of its contents, and may have a mark that says how far to prefetch
// (https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md). Those are no files of the image.
const stargzTOC = "stargz.index.json"

var stargzMarks = map[string]bool{stargzTOC: true, ".prefetch.landmark": true, ".no.prefetch.landmark": true}

// A stargzFilter passes a layer's entries on, but for what only belongs to eStargz. Whether a layer is one shows at its
// end: until then what may have to be left out is held back, which no other entry of the layer can notice.
type stargzFilter struct {
	pass func(*imgsrc.File) error
	held []*imgsrc.File
	toc  bool // the last entry was a table of contents
}

func (s *stargzFilter) add(f *imgsrc.File) error {
	if s.toc { // it was not the last: then it is a file like others
		if err := s.release(); err != nil {
			return err
		}
	}
	if !isStargzMark(f) {
		return s.pass(f)
	}
	held := *f
	s.held = append(s.held, &held)
	s.toc = rootName(f) == stargzTOC
	return nil
}

// isStargzMark says whether an entry may be one that only belongs to eStargz.
func isStargzMark(f *imgsrc.File) bool { return f.Type == '0' && stargzMarks[rootName(f)] }

func rootName(f *imgsrc.File) string { return strings.TrimPrefix(path.Clean("/"+f.Name), "/") }

func (s *stargzFilter) release() error {
	s.toc = false
	for _, f := range s.held {
		if err := s.pass(f); err != nil {
			return err
		}
	}
	s.held = nil
	return nil
}

// end is called behind the last entry.
func (s *stargzFilter) end() error {
	if s.toc {
		return nil
	}
	return s.release()
}
