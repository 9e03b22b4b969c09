package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/transports"
	cs "go.podman.io/storage"
	"go.podman.io/storage/pkg/stringid"
)

// instancesKey is the big data in which podman and buildah keep where the images of a list are: a JSON object of
// references by manifest digest, and the list's own id under the empty string.
const instancesKey = "instances.json"

// addIndex is [Source.AddIndex] in an open store.
func addIndex(store cs.Store, name string, text []byte, images map[digest.Digest]string, from string) (string, error) {
	list, err := manifest.ListFromBlob(text, manifest.GuessMIMEType(text))
	if err != nil {
		return "", err
	}
	d, err := manifest.Digest(text)
	if err != nil {
		return "", err
	}
	id, err := indexOf(store, d)
	if err != nil {
		return "", err
	}
	made := id == ""
	if made {
		id = stringid.GenerateRandomID()
	}
	places := map[string]string{"": id}
	for _, instance := range list.Instances() {
		if images[instance] == "" {
			if from != "" {
				places[instance.String()] = from + "@" + instance.String()
			}
			continue
		}
		ref, err := istorage.Transport.NewStoreReference(store, nil, images[instance])
		if err != nil {
			return "", err
		}
		places[instance.String()] = transports.ImageName(ref)
	}
	instances, err := json.Marshal(places)
	if err != nil {
		return "", err
	}
	if made { // whole, under one lock: nobody sees an image that has no manifest yet
		_, err = store.CreateImage(id, nil, "", "", &cs.ImageOptions{BigData: []cs.ImageBigDataOption{
			{Key: cs.ImageDigestBigDataKey, Data: text, Digest: d}, {Key: instancesKey, Data: instances},
		}})
	} else {
		err = store.SetImageBigData(id, instancesKey, instances, nil)
	}
	if err != nil {
		return "", writeError(err)
	}
	if name == "" {
		return id, nil
	}
	if !made { // a name that it has would come before its others
		if img, err := store.Image(id); err == nil && slices.Contains(img.Names, name) {
			return id, nil
		}
	}
	if err := store.AddNames(id, []string{name}); err != nil {
		if made {
			if _, gone := store.DeleteImage(id, true); gone != nil {
				err = errors.Join(err, fmt.Errorf("removing the index %s, which has no name: %w", id, gone))
			}
		}
		return "", writeError(err)
	}
	return id, nil
}

// indexOf returns the id of the image that is the index of this digest; empty if there is none. An image that was pulled
// by an index has that digest too, and layers.
func indexOf(store cs.Store, d digest.Digest) (string, error) {
	all, err := store.ImagesByDigest(d)
	if err != nil {
		if errors.Is(err, cs.ErrImageUnknown) {
			err = nil
		}
		return "", writeError(err)
	}
	for _, img := range all {
		if img.TopLayer == "" && img.BigDataDigests[cs.ImageDigestBigDataKey] == d {
			return img.ID, nil
		}
	}
	return "", nil
}
