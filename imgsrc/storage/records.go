package storage

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

const (
	// manifestKeyName is the big data that holds the manifest which stands for an image.
	manifestKeyName = "manifest"
	// manifestPrefix begins the name of big data that holds a manifest under its digest.
	manifestPrefix = "manifest-"
)

// A record is what images.json says of an image. Big data are files: manifests, the config, signatures.
type record struct {
	ID     string        `json:"id"`
	Digest digest.Digest `json:"digest"` // of the manifest, or of the list it was pulled by
	Names  []string      `json:"names"`
	Layer  string        `json:"layer"` // the topmost; empty if there is none
	Data   []string      `json:"big-data-names"`

	NamesHistory []string                 `json:"names-history"`
	DataSizes    map[string]int64         `json:"big-data-sizes"`
	Digests      map[string]digest.Digest `json:"big-data-digests"`
}

// manifests returns the names of the big data that are manifests, each digest once and the main one first.
func (r *record) manifests() []string {
	keys := []string{manifestKeyName}
	seen := map[digest.Digest]bool{r.Digests[manifestKeyName]: true}
	for _, key := range r.Data {
		d, ok := strings.CutPrefix(key, manifestPrefix)
		if !ok || digest.Digest(d).Validate() != nil || seen[digest.Digest(d)] {
			continue
		}
		seen[digest.Digest(d)] = true
		keys = append(keys, key)
	}
	return keys
}

// digestOf is the digest that the store has recorded for a manifest; empty if there is none.
func (r *record) digestOf(key string) digest.Digest {
	d := r.Digests[key]
	if named, ok := strings.CutPrefix(key, manifestPrefix); ok {
		d = digest.Digest(named)
	}
	if d.Validate() != nil {
		return ""
	}
	return d
}

// readRecords returns the images of the i-th store, in its order, and what could not be understood. A store without
// images.json has none.
func (s *Source) readRecords(i int) (records []*record, problems []error, err error) {
	file := filepath.Join(s.imagesDir(i), "images.json")
	data, err := readList(file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, dirErr := os.Stat(s.imagesDir(i)); errors.Is(dirErr, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("reading store %s: it is gone: %w", s.stores[i], imgsrc.ErrNotFound)
		}
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading store %s: %w", s.stores[i], err)
	}
	var raw []json.RawMessage
	if len(data) > 0 {
		if err := json.Unmarshal(data, &raw); err != nil {
			return nil, nil, fmt.Errorf("reading %s: %w: %w", file, err, imgsrc.ErrDamaged)
		}
	}
	for n, text := range raw {
		r := &record{}
		if err := json.Unmarshal(text, r); err != nil {
			problems = append(problems, fmt.Errorf("reading entry %d of %s: %w: %w", n, file, err, imgsrc.ErrDamaged))
			continue
		}
		if digest.Digest("sha256:"+r.ID).Validate() != nil {
			problems = append(problems, fmt.Errorf("reading entry %d of %s: %.100q is no image id: %w", n, file, r.ID, imgsrc.ErrDamaged))
			continue
		}
		records = append(records, r)
	}
	return records, problems, nil
}

// dataPath is the file of an image's big data. The key is "manifest", or ends in a digest that was validated.
func (s *Source) dataPath(store int, id, key string) string {
	base := key
	if strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789.") != "" {
		base = "=" + base64.StdEncoding.EncodeToString([]byte(key))
	}
	return filepath.Join(s.imagesDir(store), id, base)
}

// readData returns big data of at most [imgsrc.MaxManifest] bytes.
func readData(file string) ([]byte, error) {
	f, err := openRegular(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, imgsrc.MaxManifest+1))
	if err == nil && len(data) > imgsrc.MaxManifest {
		err = fmt.Errorf("%s has more than %d bytes: %w", file, imgsrc.MaxManifest, imgsrc.ErrDamaged)
	}
	return data, err
}

// containers returns the ids of the containers of each image id. What cannot be read is a problem; a file that is not
// there is none: which of them a store has depends on its configuration.
func (s *Source) containers() (ids map[string][]string, problems []error) {
	ids = map[string][]string{}
	for _, file := range s.containerFiles() {
		data, err := readList(file)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
			continue
		}
		var list []struct {
			ID    string `json:"id"`
			Image string `json:"image"`
		}
		if err == nil {
			err = json.Unmarshal(data, &list)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("reading containers from %s: %w", file, err))
			continue
		}
		for _, c := range list {
			if c.Image != "" && c.ID != "" {
				ids[c.Image] = append(ids[c.Image], c.ID)
			}
		}
	}
	return ids, problems
}

// containerFiles are where the containers may be listed: those of a reboot's length apart from the others, or not.
func (s *Source) containerFiles() []string {
	var files []string
	for _, dir := range s.containerDirs {
		files = append(files, filepath.Join(dir, "containers.json"), filepath.Join(dir, "volatile-containers.json"))
	}
	return files
}
