package storage

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// A recorded is what all the stores say of one image. Whoever tags an image of an additional store writes a record of it into
// the first one: podman 4 with nothing but the names that it gives, later ones with copies of the rest. So a record's names
// are taken with what later stores have of the same id.
type recorded struct {
	record       // what a reader is shown
	stores []int // those that have a record, in their order
	// lent are those of the names that only later stores' records have.
	lent []string
}

// add takes in what a later store says.
func (r *recorded) add(store int, later *record) {
	r.stores = append(r.stores, store)
	for _, name := range later.Names {
		// One that an earlier record has had was taken away there.
		if !slices.Contains(r.Names, name) && !slices.Contains(r.NamesHistory, name) {
			r.Names, r.lent = append(r.Names, name), append(r.lent, name)
		}
	}
	for _, name := range later.NamesHistory {
		if !slices.Contains(r.NamesHistory, name) {
			r.NamesHistory = append(r.NamesHistory, name)
		}
	}
	if r.Digest.Validate() != nil {
		r.Digest = later.Digest
	}
	if r.Layer == "" {
		r.Layer = later.Layer
	}
	for _, key := range later.Data {
		if !slices.Contains(r.Data, key) {
			r.Data = append(r.Data, key)
		}
	}
	r.Digests = joined(later.Digests, r.Digests)
	r.DataSizes = joined(later.DataSizes, r.DataSizes)
}

// joined returns two maps as one, in which what the second says counts.
func joined[V int64 | digest.Digest](a, b map[string]V) map[string]V {
	out := map[string]V{}
	maps.Copy(out, a)
	maps.Copy(out, b)
	return out
}

// A listedStores is what the lists of all stores say at one moment.
type listedStores struct {
	images   []*recorded // in the order of the stores, each id once
	byID     map[string]*recorded
	modTime  time.Time // of the youngest list
	problems []error   // what could not be understood, and additional stores that could not be read
}

// readStores reads the lists of all stores. Its error is that of the first one.
func (s *Source) readStores() (*listedStores, error) {
	out := &listedStores{byID: map[string]*recorded{}}
	taken := map[string]bool{} // names of earlier stores
	for i := range s.stores {
		if info, err := os.Stat(filepath.Join(s.imagesDir(i), "images.json")); err == nil && info.ModTime().After(out.modTime) {
			out.modTime = info.ModTime()
		}
		records, problems, err := s.readRecords(i)
		if err != nil && i == 0 {
			return nil, err
		}
		if err != nil {
			problems = append(problems, err) // the rest stays
		}
		out.problems = append(out.problems, problems...)
		for _, r := range records {
			r.Names = slices.DeleteFunc(r.Names, func(name string) bool { return taken[name] })
			if first := out.byID[r.ID]; first != nil {
				first.add(i, r)
				continue
			}
			image := &recorded{record: *r, stores: []int{i}}
			out.byID[r.ID] = image
			out.images = append(out.images, image)
		}
		if i+1 < len(s.stores) {
			out.take(taken)
		}
	}
	return out, nil
}

// take notes the names that the images have.
func (l *listedStores) take(names map[string]bool) {
	for _, image := range l.images {
		for _, name := range image.Names {
			names[name] = true
		}
	}
}

// home is the store that has the file of an image's big data, the first one of those; if none has it, the first of all.
func (s *Source) home(id, key string) int {
	if len(s.stores) > 1 {
		for i := range s.stores {
			if exists(s.dataPath(i, id, key)) {
				return i
			}
		}
	}
	return 0
}

// dataFile is where an image's big data is to be read.
func (s *Source) dataFile(id, key string) string { return s.dataPath(s.home(id, key), id, key) }

// isGone says whether no store has an image any more. One that is recorded without any files is not gone, but damaged.
func (s *Source) isGone(id string) bool {
	for i := range s.stores {
		if exists(filepath.Join(s.imagesDir(i), id)) {
			return false
		}
	}
	all, err := s.readStores()
	return err != nil || all.byID[id] == nil
}
