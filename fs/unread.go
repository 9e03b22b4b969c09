package fs

import (
	"errors"
	"fmt"

	"github.com/imgfs/imgfs/imgsrc"
)

// An unread is why it cannot be said whether an image has some file, or what is in it: the manifest or the config could not be
// read, or what it says there is damaged. Who looks for such a file is told the reason, and never that it is absent; a listing
// leaves it out. It was logged when the image was rendered.
type unread struct{ error }

func (u unread) Unwrap() error { return u.error }

func isUnread(err error) bool {
	var u unread
	return errors.As(err, &u)
}

// asUnread marks what a function of the image's facts returns, unless it says that the image has no such thing.
func asUnread(err error) error {
	if err == nil || errors.Is(err, imgsrc.ErrAbsent) || isUnread(err) {
		return err
	}
	return unread{err}
}

// noManifest is why the manifest says nothing; nil if it was read, or need not be for what a sketch tells.
func (r *rendered) noManifest() error {
	if r.sketched {
		return nil
	}
	return asUnread(r.facts.ManifestErr)
}

// noFacts is why the image's own bytes do not say all that they should; nil if they do.
func (r *rendered) noFacts() error {
	if !r.sketched && isDamaged(r.facts) {
		return asUnread(errors.Join(r.facts.ManifestErr, ignoreAbsent(r.facts.ConfigErr)))
	}
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, imgsrc.ErrAbsent) {
		return nil
	}
	return err
}

// ofFacts marks an error that is one of reading the image's manifest or config.
func (r *rendered) ofFacts(err error) error {
	for _, cause := range []error{r.facts.ManifestErr, ignoreAbsent(r.facts.ConfigErr)} {
		if cause != nil && errors.Is(err, cause) {
			return asUnread(err)
		}
	}
	return err
}

// byFacts marks an error of reading a layer if the same is why the manifest or the config cannot be read, which sources need for
// that: it is in the log already.
func (r *rendered) byFacts(err error) error {
	if why := r.noFacts(); err != nil && why != nil && errnoOf(why) == errnoOf(err) {
		return unread{err}
	}
	return err
}

// sayUnread logs why something of the image cannot be read: once for each reason, until all of it is read again.
func (img *image) sayUnread(r *rendered) {
	reasons := map[string]error{}
	unread := map[string]error{"config": ignoreAbsent(r.facts.ConfigErr)}
	if err := r.facts.ManifestErr; err != nil { // which says where the config is
		unread = map[string]error{"manifest": err}
	}
	for what, err := range unread {
		if err != nil && !imgsrc.IsLogged(err) { // whose text may differ each time, by the port of a connection
			reasons[fmt.Sprint(what, " ", errnoOf(err))] = err
		}
	}
	if len(reasons) == 0 { // a value in them
		for _, err := range r.errs {
			if isUnread(err) && !imgsrc.IsLogged(err) {
				reasons[err.Error()] = err
			}
		}
	}
	img.mu.Lock()
	said := img.unreadSaid
	img.unreadSaid = nil
	for reason := range reasons {
		if img.unreadSaid == nil {
			img.unreadSaid = map[string]bool{}
		}
		img.unreadSaid[reason] = true
	}
	img.mu.Unlock()
	for reason, err := range reasons {
		if !said[reason] {
			img.f.said.isNewDamage(img.id, err) // whoever meets it in other files says nothing more
			img.f.log.Warn("reading an image's manifest and config", "image", img.f.imageName(img.node(viewImage, 0)), "errno", errnoOf(err).Error(), "error", err)
		}
	}
}
