package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cs "go.podman.io/storage"
	"go.podman.io/storage/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// OpenToReceive is [Open] for whoever is about to put an image there. For root it makes a store where none is, as podman's first
// image does. Errors: those of Open; [imgsrc.ErrUnsupported] for a driver whose layers cannot be read; [imgsrc.ErrInvalid] for an
// option that the driver does not know.
func OpenToReceive(ctx context.Context, o Options) (*Source, error) {
	if err := knownDriver(o.GraphRoot, o.Driver); err != nil {
		return nil, err
	}
	src, err := Open(ctx, o)
	if !errors.Is(err, imgsrc.ErrNoSource) || os.Geteuid() != 0 {
		return src, err
	}
	made, makeErr := makeStore(o)
	if makeErr != nil {
		return nil, makeErr
	}
	if !made {
		return nil, err
	}
	return Open(ctx, o)
}

// knownDriver fails for a driver that the store must not be made with: it could not be read. Empty is any that it has.
func knownDriver(root, driver string) error {
	if driver == "" || driver == "overlay2" || slices.Contains(drivers, driver) {
		return nil
	}
	return imgsrc.Of(imgsrc.ErrUnsupported, fmt.Errorf("opening store %s: its driver %q cannot be read, only %s can", root, driver, strings.Join(drivers, " and ")))
}

// makeStore makes a store where none is of any driver.
func makeStore(o Options) (made bool, err error) {
	conf, err := types.DefaultStoreOptions()
	if err != nil && o.GraphRoot == "" {
		return false, fmt.Errorf("reading the configuration of containers-storage: %w", err)
	}
	s := &Source{}
	if s.real, err = effective(o, conf); err != nil {
		return false, err
	}
	if err := knownDriver(s.real.GraphRoot, s.real.GraphDriverName); err != nil {
		return false, err
	}
	if there, _ := filepath.Glob(filepath.Join(s.real.GraphRoot, "*-images")); len(there) > 0 {
		return false, nil // of a driver that is not known, or not the one that was asked for
	}
	if s.driver = s.real.GraphDriverName; s.driver == "" {
		s.driver = "overlay" // whose options others pass over
	}
	if _, err := s.openReal(); err != nil {
		return false, fmt.Errorf("making store %s: %w", s.real.GraphRoot, err)
	}
	return true, nil
}

// IsStore says whether this is the store that the library would open with these options.
func (s *Source) IsStore(options cs.StoreOptions) bool {
	conf, err := types.DefaultStoreOptions()
	if err != nil && options.GraphRoot == "" {
		return false
	}
	other, err := effective(Options{GraphRoot: options.GraphRoot, RunRoot: options.RunRoot, Driver: options.GraphDriverName}, conf)
	if err != nil || other.GraphRoot != s.real.GraphRoot || other.RunRoot != s.real.RunRoot {
		return false
	}
	sameDriver := options.GraphDriverName == "" || options.GraphDriverName == s.driver
	return sameDriver && (len(options.GraphDriverOptions) == 0 || slices.Equal(options.GraphDriverOptions, s.real.GraphDriverOptions))
}
